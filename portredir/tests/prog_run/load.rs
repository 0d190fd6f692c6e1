//! The object loads: the verifier of this kernel accepts every program.

use std::time::Instant;

use aya::programs::{SchedClassifier, Xdp};

use crate::cases::RULES;
use crate::rig::{PROGRAMS, Rig, SIZES};
use crate::table::Rigs;

pub fn programs(_: &mut Rigs) {
    let mut rig = Rig::new(RULES, SIZES);
    let names: Vec<_> = rig
        .datapath()
        .ebpf()
        .programs()
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(
        names.len(),
        PROGRAMS.len(),
        "programs of the object: {names:?}"
    );

    println!("program          instructions  verified  jited bytes  load ms");
    for program in PROGRAMS {
        let start = Instant::now();
        let info = if program.is_xdp {
            rig.datapath()
                .program::<Xdp>(program.name)
                .expect("load")
                .info()
        } else {
            rig.datapath()
                .program::<SchedClassifier>(program.name)
                .expect("load")
                .info()
        };
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
        assert_eq!(info.name_as_str(), Some(program.name));
    }
}
