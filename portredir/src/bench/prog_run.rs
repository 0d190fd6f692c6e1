//! The cost of one packet in each program, with `BPF_PROG_TEST_RUN`, and the sizes of the
//! programs.
//!
//! The kernel runs a program many times on one buffer and does not restore the packet, so
//! the second run sees the result of the first. Every run has to redirect: the rules
//! redirect 80 to 8080 and 8080 to 80, and the flow has an entry in both directions. The
//! counters of the programs show whether every run did so; other results are left out.
//!
//! The measurement has its own process, like the load.

mod packet;

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use nix::time::{ClockId, clock_gettime};
use portredir_common::abi::{Epoch, Flow, Port, Protocol, local};
use portredir_common::bucket::Entry;
use portredir_common::flow::Table as FlowTable;
use portredir_common::verdict::Reason;
use portredir_common::wire::Version;
use serde::{Deserialize, Serialize};

use self::packet::{
    CLIENT_PORT, Direction, Ends, HOST, KINDS, Kind, OTHER, PUBLIC, Stage, TARGET, addr,
};
use super::report::{Line, Table};
use super::statistics::median;
use crate::config::settings::Settings;
use crate::loader::{Datapath, Sizes};
use crate::rule::{self, Rule};
use crate::ruleset::compile;
use crate::ruleset::history::History;

/// Packets of a turn.
const REPEATS: u32 = 100_000;

/// New flows, each a run of its own.
const FLOWS: u16 = 2000;

/// The results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    costs: Vec<Line>,
    flows: Vec<Line>,
    programs: Vec<Line>,
}

impl Figures {
    /// Makes the tables of the report.
    #[must_use]
    pub fn into_tables(self) -> [Table; 3] {
        [
            Table {
                title: "Programs alone, ns per packet",
                note: "BPF_PROG_TEST_RUN on one packet, in turns; `empty` is a program that does \
                       nothing. Flows are known."
                    .to_owned(),
                columns: vec!["best ns", "median ns", "best to empty", "best minus empty"],
                lines: self.costs,
            },
            Table {
                title: "Programs alone, first packet of a flow",
                note: "Each run by itself, so with two readings of the clock; compare with the \
                       second packet of the same flow."
                    .to_owned(),
                columns: vec!["best ns", "median ns"],
                lines: self.flows,
            },
            Table {
                title: "Size of programs",
                note:
                    "As the kernel has them: instructions, instructions that the verifier walked, \
                       bytes of machine code."
                        .to_owned(),
                columns: vec!["instructions", "verified", "machine code bytes"],
                lines: self.programs,
            },
        ]
    }
}

/// A program, and where its packets come from.
#[derive(Clone, Copy)]
struct Program {
    /// The title in reports.
    title: &'static str,
    /// The name in the object.
    name: &'static str,
    empty: &'static str,
    hook: Hook,
    direction: Direction,
}

/// The hook of a program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    Xdp,
    Tc,
}

const PROGRAMS: [Program; 3] = [
    Program {
        title: "xdp",
        name: "portredir_frags",
        empty: "portredir_pass",
        hook: Hook::Xdp,
        direction: Direction::Ingress,
    },
    Program {
        title: "tc ingress",
        name: "portredir_in",
        empty: "portredir_next",
        hook: Hook::Tc,
        direction: Direction::Ingress,
    },
    Program {
        title: "tc egress",
        name: "portredir_out",
        empty: "portredir_next",
        hook: Hook::Tc,
        direction: Direction::Egress,
    },
];

/// All programs whose packets are of Ethernet, for the table of sizes.
const SIZES: [(&str, Hook); 4] = [
    ("portredir_xdp", Hook::Xdp),
    ("portredir_frags", Hook::Xdp),
    ("portredir_in", Hook::Tc),
    ("portredir_out", Hook::Tc),
];

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
    /// The line that it is compared with.
    empty: Option<usize>,
    /// Which of the datapaths.
    rig: usize,
    program: &'static str,
    hook: Hook,
    packet: Vec<u8>,
    counted: Counted,
    /// Nanoseconds per packet, a number for each round; none when a round was not
    /// what it should be.
    times: Option<Vec<f64>>,
}

/// Measures in so many rounds, and prints [`Figures`] as a line of JSON.
///
/// # Errors
///
/// When the programs do not load or run.
pub fn prog_run(rounds: u32) -> anyhow::Result<()> {
    // The rules that matter, and as many as there may be.
    let mut rigs = [rig(0)?, rig(9_998)?];
    let mut subjects = subjects();
    for _ in 0..rounds {
        for subject in &mut subjects {
            subject.measure(&mut rigs[subject.rig], REPEATS)?;
            // Says to the kernel that a real-time process is not stuck.
            std::thread::sleep(Duration::from_micros(20));
        }
    }
    let best = |times: &Option<Vec<f64>>| {
        let times = times.iter().flatten().copied();
        times.reduce(f64::min)
    };
    let costs = subjects.iter().map(|subject| {
        let empty = subject.empty.and_then(|empty| best(&subjects[empty].times));
        let least = best(&subject.times);
        let pair = least.zip(empty);
        Line {
            name: subject.name.clone(),
            figures: vec![
                least,
                subject.times.clone().and_then(median),
                pair.map(|(least, empty)| least / empty),
                pair.map(|(least, empty)| least - empty),
            ],
        }
    });
    let figures = Figures {
        costs: costs.collect(),
        flows: first_packets(&mut rigs[0], FLOWS)?,
        programs: programs(&mut rigs[0])?,
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&figures)?)?;
    out.flush().context("tell what was measured")
}

/// A datapath with the rules there and back, after as many others.
fn rig(fillers: u16) -> anyhow::Result<Datapath> {
    let Settings {
        max_tcp_flows,
        max_udp_flows,
        ..
    } = Settings::default();
    let sizes = Sizes {
        tcp_flows: max_tcp_flows,
        udp_flows: max_udp_flows,
    };
    let mut datapath = Datapath::load(sizes.into(), None)?;
    let fillers = (0..fillers).map(|i| format!("{}:{}/both", 20_000 + i, 30_000 + i));
    let there_and_back = [(PUBLIC, TARGET), (TARGET, PUBLIC)];
    let there_and_back = there_and_back.map(|(from, to)| format!("{from}:{to}/both"));
    let words: Vec<_> = fillers.chain(there_and_back).collect();
    let rules = rule::from_words(&words)?
        .into_iter()
        .map(|sourced| sourced.rule);
    let rules: Vec<(u16, Rule)> = (0..).zip(rules).collect();
    datapath.commit(&compile::Table::compile(
        &rules,
        &History::default(),
        compile::TableOptions::default(),
    )?)?;
    let generation = datapath.generation();
    datapath.set_on(generation, &BTreeMap::new())?;
    let hosts =
        [Version::V4, Version::V6].map(|version| (addr(version, HOST).octets(), local::ANYWHERE));
    datapath.set_local(&HashMap::from(hosts))?;
    let last = u16::try_from(rules.len() - 1)?;
    for kind in KINDS {
        // The flow through 80 to 8080, and the one back that it is the next time.
        for (local_port, dst_port, rule) in [(TARGET, PUBLIC, last - 1), (PUBLIC, TARGET, last)] {
            let flow = Flow {
                dialled_port: Port::new(dst_port),
                client_port: Port::new(CLIENT_PORT),
                rule,
                seen: now()?,
            };
            insert(&datapath, kind, local_port, &flow)?;
        }
    }
    Ok(datapath)
}

/// Inserts a flow into its table.
fn insert(datapath: &Datapath, kind: Kind, local_port: u16, flow: &Flow) -> anyhow::Result<()> {
    let table = match kind.protocol {
        Protocol::Tcp => FlowTable::Tcp,
        Protocol::Udp => FlowTable::Udp,
    };
    let key = kind.key(local_port);
    let flows = datapath.flows()?;
    let (bucket, hash) = flows.bucket(table, &key);
    bucket.put(hash, key.local_port, Entry::new(hash, flow, false));
    Ok(())
}

/// The current time, in the unit of the flow tables.
fn now() -> anyhow::Result<Epoch> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(Epoch::at(u64::try_from(now.as_nanos())?))
}

fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for program in PROGRAMS {
        let empty = subjects.len();
        let no_rule = |name: String, rig| Subject {
            rig,
            ..subject(program, (name, KINDS[0]), OTHER, empty)
        };
        subjects.push(Subject {
            program: program.empty,
            ..no_rule("empty".to_owned(), 0)
        });
        for (rig, rules) in [(0, ""), (1, ", 10000 rules")] {
            subjects.push(no_rule(format!("no rule, TCP v4{rules}"), rig));
            for kind in KINDS {
                let (hit, counted, port) = match program.direction {
                    Direction::Ingress => ("redirected", Counted::AtARule, PUBLIC),
                    Direction::Egress => ("restored", Counted::As(Reason::Restored), TARGET),
                };
                let name = format!("{hit}, {}{rules}", kind.name);
                subjects.push(Subject {
                    rig,
                    counted,
                    ..subject(program, (name, kind), port, empty)
                });
            }
        }
    }
    subjects
}

/// A packet that no rule counts, in the datapath with few rules.
fn subject(program: Program, (name, kind): (String, Kind), port: u16, empty: usize) -> Subject {
    let ends = Ends {
        client: CLIENT_PORT,
        host: port,
    };
    Subject {
        name: format!("{}: {name}", program.title),
        empty: Some(empty),
        rig: 0,
        program: program.name,
        hook: program.hook,
        packet: kind.packet(ends, program.direction, Stage::Later),
        counted: Counted::Nowhere,
        times: Some(Vec::new()),
    }
}

impl Subject {
    /// Adds a round.
    fn measure(&mut self, rig: &mut Datapath, repeats: u32) -> anyhow::Result<()> {
        let Some(times) = &mut self.times else {
            return Ok(());
        };
        let before = counts(rig)?;
        let ns = run(
            rig,
            &Run {
                program: self.program,
                hook: self.hook,
                packet: &self.packet,
                repeats,
            },
        )?;
        let (rules, flows, reasons) = counts(rig)?;
        let (mut expected_rules, expected_flows, mut expected_reasons) = before;
        match self.counted {
            Counted::Nowhere => {}
            Counted::AtARule => expected_rules += u64::from(repeats),
            Counted::As(reason) => expected_reasons[reason as usize] += u64::from(repeats),
        }
        if (rules, flows, &reasons) == (expected_rules, expected_flows, &expected_reasons) {
            times.push(ns);
        } else {
            eprintln!(
                "{}: not what should be measured: rules {rules} and not {expected_rules}, flows \
                 {flows} and not {expected_flows}, reasons {reasons:?} and not {expected_reasons:?}",
                self.name
            );
            self.times = None;
        }
        Ok(())
    }
}

/// Packets at rules, flows, and packets by reason.
fn counts(rig: &Datapath) -> anyhow::Result<(u64, u64, Vec<u64>)> {
    let counters = rig.counters()?;
    let counters = counters
        .iter()
        .map(|(_, counter)| (counter.packets, counter.flows));
    let (packets, flows) = counters.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    Ok((packets, flows, rig.reasons()?))
}

/// A run of a program on a packet.
struct Run<'a> {
    program: &'static str,
    hook: Hook,
    packet: &'a [u8],
    repeats: u32,
}

/// Runs a program; returns nanoseconds per packet.
fn run(rig: &mut Datapath, run: &Run<'_>) -> anyhow::Result<f64> {
    let name = run.program;
    let options = TestRunOptions {
        data_in: Some(run.packet),
        repeat: run.repeats,
        ..TestRunOptions::new()
    };
    let result = match run.hook {
        Hook::Xdp => rig.program::<Xdp>(name)?.test_run(options),
        Hook::Tc => rig.program::<SchedClassifier>(name)?.test_run(options),
    };
    let result = result.with_context(|| format!("run {name}"))?;
    Ok(result.duration.as_secs_f64() * 1e9)
}

/// A flow begins only once, so each run is one of its own.
fn first_packets(rig: &mut Datapath, flows: u16) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    // Of another client port than the flows that are known.
    let mut ports = 2000..;
    for program in PROGRAMS
        .iter()
        .filter(|program| program.direction == Direction::Ingress)
    {
        for (name, kind) in [("UDP v4", KINDS[2]), ("SYN v4", KINDS[0])] {
            let (mut first, mut second) = (Vec::new(), Vec::new());
            let (packets_before, flows_before, _) = counts(rig)?;
            for port in ports.by_ref().take(flows.into()) {
                let ends = Ends {
                    client: port,
                    host: PUBLIC,
                };
                let once = Run {
                    program: program.name,
                    hook: program.hook,
                    packet: &kind.packet(ends, Direction::Ingress, Stage::First),
                    repeats: 1,
                };
                first.push(run(rig, &once)?);
                second.push(run(rig, &once)?);
            }
            let (packets_after, flows_after, _) = counts(rig)?;
            let counted = (packets_after - packets_before, flows_after - flows_before);
            let is_good = counted == (2 * u64::from(flows), flows.into());
            if !is_good {
                eprintln!(
                    "{} {name}: counted {counted:?} for {flows} flows",
                    program.title
                );
            }
            for (what, times) in [("first packet", first), ("second packet", second)] {
                let best = times.iter().copied().reduce(f64::min);
                lines.push(Line {
                    name: format!("{}: {what}, {name}", program.title),
                    figures: vec![best.filter(|_| is_good), median(times).filter(|_| is_good)],
                });
            }
        }
    }
    Ok(lines)
}

fn programs(rig: &mut Datapath) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (name, hook) in SIZES {
        let info = match hook {
            Hook::Xdp => rig.program::<Xdp>(name)?.info(),
            Hook::Tc => rig.program::<SchedClassifier>(name)?.info(),
        };
        let info = info.with_context(|| format!("ask about {name}"))?;
        let figures = [
            info.size_translated().map(|bytes| bytes / 8),
            info.verified_instruction_count(),
            Some(info.size_jitted()),
        ];
        lines.push(Line {
            name: name.to_owned(),
            figures: figures.map(|figure| figure.map(f64::from)).to_vec(),
        });
    }
    Ok(lines)
}
