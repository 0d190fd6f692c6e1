//! The files and the memory of a process, and of the maps that it holds.

use std::collections::BTreeMap;
use std::fs;

use crate::lab::process::note;

/// At one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open files of all kinds.
    pub files: usize,
    /// Memory of its own, in KiB; the flow tables are mapped while they are read.
    pub anonymous_kib: u64,
    /// Memory of its maps, by their IDs. Those that grow with their entries tell how
    /// many there are (Linux 6.4).
    pub map_bytes: BTreeMap<u64, u64>,
}

impl Usage {
    /// Reads the usage of a process.
    pub fn of(pid: u32) -> Self {
        let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("fdinfo");
        let infos: Vec<_> = infos
            .filter_map(|info| fs::read_to_string(info.ok()?.path()).ok())
            .collect();
        let mut maps = BTreeMap::new();
        for info in &infos {
            let field = |name: &str| {
                let line = info.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse::<u64>().ok()
            };
            if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
                maps.insert(id, bytes);
            }
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
        Self {
            files: infos.len(),
            anonymous_kib: anonymous.expect("RssAnon"),
            map_bytes: maps,
        }
    }

    fn text(&self) -> String {
        let Self {
            files,
            anonymous_kib,
            map_bytes,
        } = self;
        let (count, sum) = (map_bytes.len(), map_bytes.values().sum::<u64>());
        format!("{files} files, {anonymous_kib} KiB, {count} maps of {sum} bytes")
    }

    /// Looks that nothing has grown since, but for what a program keeps to use
    /// again.
    pub fn check_against(&self, before: &Self, what: &str) {
        self.check_within(before, 0, what);
    }

    /// Checks as [`Self::check_against`] does, where a map may have some bytes more
    /// at one moment than at another.
    pub fn check_within(&self, before: &Self, map_bytes: u64, what: &str) {
        const SLACK_KIB: u64 = 6 * 1024;
        note(&format!("{what}: {}, then {}", before.text(), self.text()));
        assert!(self.files <= before.files, "open files after {what}");
        for (id, bytes) in &self.map_bytes {
            let was = before.map_bytes.get(id).copied().unwrap_or_default();
            assert!(
                *bytes <= was + map_bytes,
                "map {id} grew from {was} to {bytes} bytes: {what}"
            );
        }
        assert!(
            self.anonymous_kib <= before.anonymous_kib + SLACK_KIB,
            "memory after {what}"
        );
    }
}
