//! What one packet costs in each program, by `BPF_PROG_TEST_RUN`.
//!
//! The kernel runs a program many times on one buffer and does not put the
//! packet back, so a second run sees what the first made of it. A redirect has
//! to be one the next time too: the rules lead from 80 to 8080 and back, and
//! the flow has an entry in both directions. Whether every run was what it
//! should be is told by the programs' own counters.
//!
//! Needs root. `cargo bench -p portredir --bench prog_run`.

#[expect(dead_code, reason = "the tests need more of it")]
#[path = "../tests/cases/mod.rs"]
mod cases;
#[expect(dead_code, reason = "the tests need more of it")]
#[path = "../tests/prog_run/namespace.rs"]
mod namespace;
#[expect(dead_code, reason = "the tests need more of it")]
#[path = "../tests/prog_run/rig.rs"]
mod rig;

use std::collections::HashMap;
use std::process::ExitCode;

use aya::programs::{SchedClassifier, Xdp};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, geteuid};
use portredir::datapath::Sizes;
use portredir_common::abi::{Flow, Protocol};
use portredir_common::verdict::Reason;
use portredir_common::wire::Link;

use cases::flows::{KINDS, Kind};
use cases::host::Tables;
use cases::packet::{Packet, syn4, udp4};
use cases::{Hook, Iface, RULES, Setup, seen};
use rig::{PROGRAMS, Program, Rig, at_time, now_ns};

/// To the target and back.
const THERE_AND_BACK: &[&str] = &["80:8080/both", "8080:80/both"];

/// As the program has them by default.
const SIZES: Sizes = Sizes {
    tcp_flows: 262_144,
    udp_flows: 65_536,
};

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    repeats: u32,
    singles: u16,
}

/// How a run shows in the counters.
#[derive(Clone, Copy)]
enum Counted {
    Nowhere,
    AtARule,
    As(Reason),
}

/// A packet in a state that every run finds anew.
struct Subject {
    name: String,
    program: Program,
    rules: &'static [&'static str],
    tables: Tables,
    packet: Vec<u8>,
    counted: Counted,
    /// Nanoseconds per packet, a number for each round.
    times: Vec<u128>,
}

type Rigs = HashMap<&'static [&'static str], Rig>;

fn main() -> ExitCode {
    if !geteuid().is_root() {
        println!("prog_run: needs root, nothing measured");
        return ExitCode::SUCCESS;
    }
    // `cargo test --all-targets` runs this too, to see that it works.
    let effort = if std::env::args().any(|arg| arg == "--bench") {
        Effort {
            rounds: 15,
            repeats: 200_000,
            singles: 3000,
        }
    } else {
        Effort {
            rounds: 1,
            repeats: 100,
            singles: 10,
        }
    };
    namespace::enter();
    stay_on_one_cpu();
    let mut rigs: Rigs = [RULES, THERE_AND_BACK]
        .map(|rules| (rules, Rig::new(Setup::of(rules), SIZES)))
        .into();
    let mut subjects = subjects();
    let mut is_good = true;
    // In turns, so that what disturbs the machine for a while disturbs all.
    for _ in 0..effort.rounds {
        for subject in &mut subjects {
            is_good &= subject.measure(&mut rigs, effort.repeats);
        }
    }
    println!(
        "{} rounds of {} packets; nanoseconds per packet",
        effort.rounds, effort.repeats
    );
    println!(
        "{:<16} {:<20} {:>6} {:>6}",
        "program", "packet", "min", "median"
    );
    for subject in &mut subjects {
        print_times(subject.program.name, &subject.name, &mut subject.times);
    }
    is_good &= measure_new_flows(&mut rigs, effort.singles);
    print_programs(&mut rigs);
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Counters and caches are per CPU.
fn stay_on_one_cpu() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).expect("read the CPUs");
    let cpu = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu) == Ok(true));
    let mut one = CpuSet::new();
    one.set(cpu.expect("we run on one")).expect("it is a CPU");
    sched_setaffinity(this, &one).expect("stay on one CPU");
}

fn subjects() -> Vec<Subject> {
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2, 8, 6], &[0; 46]].concat();
    let mut subjects = Vec::new();
    for program in PROGRAMS {
        if program.link == Link::Ip {
            continue;
        }
        let mut add = |name: &str, rules, tables: &Tables, packet: Vec<u8>, counted| {
            subjects.push(Subject {
                name: name.to_owned(),
                program,
                rules,
                tables: tables.clone(),
                packet,
                counted,
                times: Vec::new(),
            });
        };
        let none = Tables::default();
        let ingress = program.hook == Hook::Ingress;
        // From the client to a port, or from the port to the client.
        let packet = |kind: Kind, port| {
            if ingress {
                kind.packet(port).bytes()
            } else {
                kind.reply(port).bytes()
            }
        };
        add("not IP", RULES, &none, arp.clone(), Counted::Nowhere);
        for kind in KINDS {
            let name = |what: &str| format!("{what} {}", kind.name);
            let missed = packet(kind, 443);
            add(&name("no rule"), RULES, &none, missed, Counted::Nowhere);
            let (what, counted) = if ingress {
                ("redirected", Counted::AtARule)
            } else {
                ("restored", Counted::As(Reason::Restored))
            };
            let (rules, tables) = (THERE_AND_BACK, there_and_back(kind));
            add(
                &name(what),
                rules,
                &tables,
                packet(kind, if ingress { 80 } else { 8080 }),
                counted,
            );
            let mut tables = Tables::default();
            if kind.protocol == Protocol::Udp {
                tables = tables.flow(kind.table(), kind.key(8080), seen(8080, 0));
            }
            let direct = Counted::As(Reason::Direct);
            add(&name("direct"), RULES, &tables, packet(kind, 8080), direct);
        }
    }
    subjects
}

/// The flow through 80 to 8080, and the one through 8080 to 80 that the packet
/// belongs to the next time.
fn there_and_back(kind: Kind) -> Tables {
    let back = Flow {
        rule: 1,
        ..seen(8080, 0)
    };
    Tables::default()
        .flow(kind.table(), kind.key(8080), seen(80, 0))
        .flow(kind.table(), kind.key(80), back)
}

impl Subject {
    /// Adds a round, and returns whether every run was what it should be.
    fn measure(&mut self, rigs: &mut Rigs, repeats: u32) -> bool {
        let rig = rigs.get_mut(self.rules).expect("it was made");
        rig.set_tables(&at_time(&self.tables, now_ns()));
        rig.clear_counters();
        let before = rig.datapath().reasons().expect("read REASONS");
        let mut out = vec![0; self.packet.len() + 64];
        let result = rig.repeat(
            self.program,
            Iface::Lo.into(),
            &self.packet,
            &mut out,
            repeats,
        );
        self.times
            .push(result.expect("run the program").duration.as_nanos());

        let after = rig.datapath().reasons().expect("read REASONS");
        let counters = rig.datapath().counters().expect("read COUNTERS");
        let at_rules: u64 = counters.iter().map(|(_, counter)| counter.packets).sum();
        let flows: u64 = counters.iter().map(|(_, counter)| counter.flows).sum();
        let mut expected = (0, before);
        match self.counted {
            Counted::Nowhere => {}
            Counted::AtARule => expected.0 = repeats.into(),
            Counted::As(reason) => expected.1[reason as usize] += u64::from(repeats),
        }
        let is_good = (at_rules, &after) == (expected.0, &expected.1) && flows == 0;
        if !is_good {
            let Self { name, program, .. } = self;
            eprintln!("{} {name}: not what should be measured", program.name);
            eprintln!(
                "  rules {at_rules}, reasons {after:?}, expected {expected:?}, new flows {flows}"
            );
        }
        is_good
    }
}

fn print_times(program: &str, name: &str, times: &mut [u128]) {
    times.sort_unstable();
    let (min, median) = (times[0], times[times.len() / 2]);
    println!("{program:<16} {name:<20} {min:>6} {median:>6}");
}

/// A flow begins only once, so each run is one of its own. It includes that the
/// kernel reads the clock twice; compare with the packet of the known flow.
fn measure_new_flows(rigs: &mut Rigs, singles: u16) -> bool {
    println!();
    println!("{singles} single packets; nanoseconds, with two readings of the clock");
    println!(
        "{:<16} {:<20} {:>6} {:>6}",
        "program", "packet", "min", "median"
    );
    let rig = rigs.get_mut(RULES).expect("it was made");
    let mut is_good = true;
    for program in PROGRAMS {
        if program.hook == Hook::Egress || program.link == Link::Ip {
            continue;
        }
        for (protocol, packet) in [("udp v4", udp4 as fn(u16) -> Packet), ("syn v4", syn4)] {
            rig.set_tables(&Tables::default());
            rig.clear_counters();
            let mut once = |port| {
                let frame = packet(80).src_port(port).bytes();
                let mut out = vec![0; frame.len() + 64];
                let result = rig.repeat(program, Iface::Lo.into(), &frame, &mut out, 1);
                result.expect("run the program").duration.as_nanos()
            };
            let (mut new, mut known) = (Vec::new(), Vec::new());
            for port in 2000..2000 + singles {
                new.push(once(port));
                known.push(once(port));
            }
            print_times(program.name, &format!("new flow {protocol}"), &mut new);
            print_times(program.name, &format!("known flow {protocol}"), &mut known);
            let counters = rig.datapath().counters().expect("read COUNTERS");
            let flows: u64 = counters.iter().map(|(_, counter)| counter.flows).sum();
            let packets: u64 = counters.iter().map(|(_, counter)| counter.packets).sum();
            let singles = u64::from(singles);
            if (flows, packets) != (singles, 2 * singles) {
                eprintln!(
                    "{} {protocol}: {flows} new flows, {packets} packets",
                    program.name
                );
                is_good = false;
            }
            // For the next one, that finds them otherwise.
            rig.read_tables();
        }
    }
    is_good
}

fn print_programs(rigs: &mut Rigs) {
    println!();
    println!(
        "{:<16} {:>12} {:>21} {:>11}",
        "program", "instructions", "verified instructions", "jited bytes"
    );
    let rig = rigs.get_mut(RULES).expect("it was made");
    for program in PROGRAMS {
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
        let info = info.expect("read what the kernel knows of the program");
        println!(
            "{:<16} {:>12} {:>21} {:>11}",
            program.name,
            info.size_translated().unwrap_or(0) / 8,
            info.verified_instruction_count().unwrap_or(0),
            info.size_jitted(),
        );
    }
}
