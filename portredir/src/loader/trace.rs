//! Reads what the programs write about packets, and has them write it meanwhile.
//!
//! One bit beside the generation of rules turns the trace on, and the programs clear it when
//! the time in `TRACE_UNTIL` is over: a reader that was killed leaves nothing on.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aya::maps::{Array, Map, MapData, MapError, MapInfo, PerCpuArray, RingBuf};
use aya::programs::loaded_programs;
use portredir_common::map::packet_path::{PacketPath, TRACED};
use portredir_common::map::trace::{Record, TraceCpu};
use thiserror::Error;

use super::Datapath;
use crate::exit::ExitCode;
use crate::state::attachment::{Attachment, Place};
use crate::sys::bpf_link;
use crate::sys::bpffs::PinDir;
use crate::sys::clock::monotonic;
use crate::sys::lock::{LockError, TraceLock};
use crate::sys::mmap::Mapped;

/// The maps of a trace.
const HOT: &str = "HOT";
const RING: &str = "TRACE";
const UNTIL: &str = "TRACE_UNTIL";
const CPUS: &str = "TRACE_CPU";

/// How long the programs write without hearing of the reader again.
const LEASE: Duration = Duration::from_secs(2);

/// The greatest number of records that are read at once.
const MOST: usize = 4096;

/// The reason why nothing can be traced.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The programs do not write what became of packets.
    #[error(
        "the running programs are of a version that cannot be traced; to replace them: portredir up"
    )]
    Older,
    /// The maps of a process cannot be looked for.
    #[error("not permitted: find the BPF maps of process {pid}; use sudo")]
    Process {
        /// The process.
        pid: i32,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// A map cannot be used.
    #[error("access BPF map {name}")]
    Map {
        /// The name of the map.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: MapError,
    },
    /// Another process traces.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl TraceError {
    /// The exit code for this error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Process { .. } => ExitCode::NotPermitted,
            Self::Map {
                source: MapError::SyscallError(error),
                ..
            } if error.io_error.kind() == std::io::ErrorKind::PermissionDenied => {
                ExitCode::NotPermitted
            }
            _ => ExitCode::Failed,
        }
    }
}

fn failed(name: &'static str) -> impl FnOnce(MapError) -> TraceError {
    move |source| TraceError::Map { name, source }
}

/// A trace that is on for as long as this lives, and is renewed.
pub struct Tracer {
    hot: Mapped<PacketPath<AtomicU64>>,
    /// The ID of the map `HOT`, by which a redirect is known.
    id: u32,
    ring: RingBuf<MapData>,
    ring_id: u32,
    until: Array<MapData, u64>,
    cpus: PerCpuArray<MapData, TraceCpu>,
    lost: u64,
    #[expect(dead_code, reason = "held for its existence")]
    lock: TraceLock,
}

impl Tracer {
    /// Traces the redirect whose maps are pinned.
    ///
    /// # Errors
    ///
    /// [`TraceError`].
    pub fn of_pins(pins: &PinDir) -> Result<Self, TraceError> {
        Self::open(|name| {
            let path = pins.path(name);
            if path.exists() {
                MapData::from_pin(path).map_err(failed(name))
            } else {
                Err(TraceError::Older)
            }
        })
    }

    /// Traces the redirect of a process, whose maps are not pinned.
    ///
    /// # Errors
    ///
    /// [`TraceError`].
    pub fn of_process(pid: i32) -> Result<Self, TraceError> {
        let ids = map_ids(pid).map_err(|source| TraceError::Process { pid, source })?;
        Self::open(|name| {
            for &id in &ids {
                let info = MapInfo::from_id(id).map_err(failed(name))?;
                if info.name_as_str() == Some(name) {
                    return MapData::from_id(id).map_err(failed(name));
                }
            }
            Err(TraceError::Older)
        })
    }

    /// Traces the redirect of this process.
    ///
    /// # Errors
    ///
    /// [`TraceError`].
    pub fn of(datapath: &Datapath) -> Result<Self, TraceError> {
        Self::open(|name| {
            let (Map::Array(map) | Map::RingBuf(map) | Map::PerCpuArray(map)) = datapath.map(name)
            else {
                unreachable!("{name} is of another kind");
            };
            let fd = map.fd().as_fd().try_clone_to_owned();
            let fd = fd.map_err(|error| failed(name)(MapError::IoError(error)))?;
            MapData::from_fd(fd).map_err(failed(name))
        })
    }

    fn open(map: impl Fn(&'static str) -> Result<MapData, TraceError>) -> Result<Self, TraceError> {
        let lock = TraceLock::take()?;
        let hot = map(HOT)?;
        let id = hot.info().map_err(failed(HOT))?.id();
        let hot = Mapped::new(hot.fd().as_fd(), 1)
            .map_err(|error| failed(HOT)(MapError::IoError(error)))?;
        let ring = map(RING)?;
        let ring_id = ring.info().map_err(failed(RING))?.id();
        let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(failed(RING))?;
        let until = Array::try_from(Map::Array(map(UNTIL)?)).map_err(failed(UNTIL))?;
        let cpus = PerCpuArray::try_from(Map::PerCpuArray(map(CPUS)?)).map_err(failed(CPUS))?;
        let mut tracer = Self {
            hot,
            id,
            ring,
            ring_id,
            until,
            cpus,
            lost: 0,
            lock,
        };
        // What another reader has left.
        while tracer.ring.next().is_some() {}
        tracer.lost = tracer.count_lost()?;
        tracer.renew()?;
        Ok(tracer)
    }

    /// Keeps the trace on for two more seconds.
    ///
    /// # Errors
    ///
    /// [`TraceError::Map`].
    pub fn renew(&mut self) -> Result<(), TraceError> {
        let until_ns = u64::try_from((monotonic() + LEASE).as_nanos()).unwrap_or(u64::MAX);
        self.until.set(0, until_ns, 0).map_err(failed(UNTIL))?;
        self.hot[0].generation.fetch_or(TRACED, Relaxed);
        Ok(())
    }

    /// The records that are there, in the order of their times: processors that decide at the
    /// same moment may write in another order.
    pub fn take_records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        while records.len() < MOST
            && let Some(item) = self.ring.next()
        {
            // An unknown record is one of a newer version.
            records.extend(Record::read(&item));
        }
        records.sort_by_key(|record| record.head().at_ns);
        records
    }

    /// The number of records that were lost since this was last asked.
    ///
    /// # Errors
    ///
    /// [`TraceError::Map`].
    pub fn take_lost(&mut self) -> Result<u64, TraceError> {
        let now = self.count_lost()?;
        let lost = now.saturating_sub(self.lost);
        self.lost = now;
        Ok(lost)
    }

    fn count_lost(&self) -> Result<u64, TraceError> {
        let cpus = self.cpus.get(&0, 0).map_err(failed(CPUS))?;
        Ok(cpus.iter().map(|cpu| cpu.lost).sum())
    }

    /// The attached programs that do not write to this trace, by interface: they are older
    /// than the maps, as a newer version leaves them that did not replace them. Programs whose
    /// links are not pinned are not judged.
    #[must_use]
    pub fn silent(&self, pins: &PinDir, attachments: &[Attachment]) -> Vec<String> {
        let writers: HashSet<u32> = loaded_programs()
            .flatten()
            .filter(
                |program| matches!(program.map_ids(), Ok(Some(ids)) if ids.contains(&self.ring_id)),
            )
            .map(|program| program.id())
            .collect();
        let program = |(place, _): &(Place, String)| match place {
            Place::Pin(name) => bpf_link::program_id(&pins.path(name)).ok().flatten(),
            Place::Filter { .. } => None,
        };
        let is_silent = |attachment: &&Attachment| {
            let mut programs = attachment
                .mode
                .programs
                .iter()
                .filter_map(program)
                .peekable();
            programs.peek().is_some() && !programs.any(|id| writers.contains(&id))
        };
        let silent = attachments.iter().filter(is_silent);
        silent
            .map(|attachment| attachment.report.name.clone())
            .collect()
    }

    /// Whether the pins are still those of the redirect that is traced.
    #[must_use]
    pub fn is_pinned(&self, pins: &PinDir) -> bool {
        let hot = MapData::from_pin(pins.path(HOT));
        let info = hot.and_then(|hot| hot.info());
        info.is_ok_and(|info| info.id() == self.id)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.hot[0].generation.fetch_and(!TRACED, Relaxed);
    }
}

/// The IDs of the maps that a process has open, by proc_pid_fdinfo(5).
fn map_ids(pid: i32) -> std::io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // The process may have closed the file.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}
