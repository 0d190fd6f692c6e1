//! The open files, the memory and the objects of the kernel that the program holds.

use std::collections::BTreeMap;
use std::fs;

use crate::lab::program::Redirector;

/// A program, map or link of the kernel, by its ID.
pub enum KernelObject {
    Program(u32),
    Map(u32),
    Link(u32),
}

impl KernelObject {
    pub fn exists(&self) -> bool {
        match *self {
            Self::Program(id) => aya::programs::loaded_programs()
                .flatten()
                .any(|program| program.id() == id),
            Self::Map(id) => aya::maps::loaded_maps().flatten().any(|map| map.id() == id),
            Self::Link(id) => aya::programs::loaded_links()
                .flatten()
                .any(|link| link.id() == id),
        }
    }
}

impl Redirector {
    /// The files it has open but for programs, without the numbers that tell sockets apart.
    pub fn open_files(&self) -> BTreeMap<String, usize> {
        let dir = fs::read_dir(format!("/proc/{}/fd", self.process.id()));
        let names = dir.expect("its files").flatten();
        let targets = names.filter_map(|file| fs::read_link(file.path()).ok());
        let mut files = BTreeMap::new();
        for target in targets {
            let target = target.to_string_lossy().into_owned();
            let kind = target.split(":[").next().unwrap_or_default().to_owned();
            // Programs are loaded once, when first needed: that without frags
            // when an interface goes just as it is attached to. A setting of the kernel is
            // open for the moment in which it is read.
            if kind != "anon_inode:bpf-prog" && !kind.starts_with("/proc/") {
                *files.entry(kind).or_default() += 1;
            }
        }
        files
    }

    /// Memory that it takes.
    pub fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let line = line.and_then(|line| line.trim().strip_suffix(" kB"));
        line.and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// The kernel's objects that it holds.
    pub fn kernel_objects(&self) -> Vec<KernelObject> {
        let dir = fs::read_dir(format!("/proc/{}/fdinfo", self.process.id()));
        let mut objects = Vec::new();
        for file in dir.expect("its files").flatten() {
            let info = fs::read_to_string(file.path()).unwrap_or_default();
            let id = |key: &str| {
                let line = info.lines().find_map(|line| line.strip_prefix(key))?;
                line.trim().parse().ok()
            };
            // The file of a link also names the program, on a later line.
            let object = id("link_id:")
                .map(KernelObject::Link)
                .or_else(|| id("prog_id:").map(KernelObject::Program))
                .or_else(|| id("map_id:").map(KernelObject::Map));
            objects.extend(object);
        }
        objects
    }
}
