//! The object loads: the verifier of this kernel accepts every program.

use std::collections::BTreeSet;
use std::time::Instant;

use aya::programs::{
    CgroupSockAddr, ProgramError, ProgramInfo, SchedClassifier, SkLookup, SockOps, Xdp,
};
use nix::sys::utsname::uname;
use portredir::host::preflight::check_kernel;
use portredir::loader::{Datapath, DatapathError};

use crate::program::PROGRAMS;
use crate::rig::SIZES;
use crate::table::Rigs;

type LoadProgram = fn(&mut Datapath, &'static str) -> Result<Info, DatapathError>;
type Info = Result<ProgramInfo, ProgramError>;

/// The programs that no packet of the cases runs through: those at sockets, and those
/// of the benchmark.
const OTHERS: [(&str, LoadProgram); 17] = [
    ("portredir_gen", xdp),
    ("portredir_pass", xdp),
    ("portredir_next", classifier),
    ("portredir_look", sk_lookup),
    ("portredir_lkall", sk_lookup),
    ("portredir_reg", sock_ops),
    ("portredir_acc", sock_ops),
    ("portredir_lo", classifier),
    ("portredir_scan", classifier),
    ("portredir_conn4", sock_addr),
    ("portredir_conn6", sock_addr),
    ("portredir_send4", sock_addr),
    ("portredir_send6", sock_addr),
    ("portredir_recv4", sock_addr),
    ("portredir_recv6", sock_addr),
    ("portredir_peer4", sock_addr),
    ("portredir_peer6", sock_addr),
];

fn xdp(datapath: &mut Datapath, name: &'static str) -> Result<Info, DatapathError> {
    Ok(datapath.program::<Xdp>(name)?.info())
}

fn classifier(datapath: &mut Datapath, name: &'static str) -> Result<Info, DatapathError> {
    Ok(datapath.program::<SchedClassifier>(name)?.info())
}

fn sock_ops(datapath: &mut Datapath, name: &'static str) -> Result<Info, DatapathError> {
    Ok(datapath.program::<SockOps>(name)?.info())
}

fn sk_lookup(datapath: &mut Datapath, name: &'static str) -> Result<Info, DatapathError> {
    Ok(datapath.program::<SkLookup>(name)?.info())
}

fn sock_addr(datapath: &mut Datapath, name: &'static str) -> Result<Info, DatapathError> {
    Ok(datapath.program::<CgroupSockAddr>(name)?.info())
}

/// The oldest kernel that the documents name, and one that it refuses: both are booted.
const OLDEST: (u32, u32) = (6, 1);
const REFUSED: (u32, u32) = (5, 10);

/// A kernel that is too old is refused by name, before anything is loaded.
pub fn preflight(_: &mut Rigs) {
    let name = uname().expect("uname");
    let release = name.release().to_string_lossy();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
    let version = numbers.next().zip(numbers.next()).expect("a version");
    let checked = check_kernel().map_err(|error| error.to_string());
    if version >= OLDEST {
        assert_eq!(checked, Ok(()));
    } else if version <= REFUSED {
        let error = checked.expect_err("a refusal");
        assert!(error.contains("added in Linux 5.11"), "{error}");
        assert!(error.contains("needs Linux 6.1 or newer"), "{error}");
    }
}

pub fn programs(_: &mut Rigs) {
    let on_packets = PROGRAMS.iter().map(|program| {
        (
            program.name,
            if program.is_xdp { xdp } else { classifier } as LoadProgram,
        )
    });
    let programs: Vec<_> = on_packets.chain(OTHERS).collect();
    let mut datapath = Datapath::load(SIZES.into(), None).expect("load the object");
    let names: BTreeSet<_> = datapath
        .object()
        .expect("it is loaded")
        .programs()
        .map(|(name, _)| name.to_owned())
        .collect();
    let known: BTreeSet<_> = programs
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(names, known, "programs of the object");

    println!(
        "{:<16} instructions  verified  jited bytes  load ms",
        "program"
    );
    for (name, load) in &programs {
        let start = Instant::now();
        let info = load(&mut datapath, name).unwrap_or_else(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            panic!("{error}: {}", cause.unwrap_or_default());
        });
        let time = start.elapsed();
        let info = info.expect("read what the kernel knows of the program");
        println!(
            "{:<16} {:>12} {:>9} {:>12} {:>8}",
            info.name_as_str().unwrap_or_default(),
            info.size_translated().unwrap_or(0) / 8,
            info.verified_instruction_count().unwrap_or(0),
            info.size_jitted(),
            time.as_millis(),
        );
        // The name is the one that people look for in `bpftool prog`.
        assert_eq!(info.name_as_str(), Some(*name));
    }
}
