//! Measures the cost of one packet in each program alone, by `BPF_PROG_TEST_RUN`, and the
//! size of the programs.
//!
//! The kernel runs a program many times on one buffer and does not restore the packet, so
//! each run sees the output of the one before. A redirect has to be one the next time
//! too: the rules lead from 80 to 8080 and back, and the flow has an entry in both
//! directions. The programs' own counters tell whether every run did what it should; a
//! figure of runs that did not is not shown.
//!
//! The measurement has a separate process, like the load.

mod packet;

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use nix::time::{ClockId, clock_gettime};
use portredir_common::flow::FlowTable;
use portredir_common::flow::{Epoch, Flow};
use portredir_common::map::entry::Entry;
use portredir_common::map::local;
use portredir_common::net::{Port, Protocol};
use portredir_common::verdict::Reason;
use serde::{Deserialize, Serialize};

use self::packet::{CLIENT_PORT, HOST, KINDS, Kind, OTHER, PUBLIC, Shape, TARGET, addr};
use crate::bench::report::{Line, Table};
use crate::bench::statistics::median;
use crate::config::settings::Settings;
use crate::loader::{Datapath, Sizes};
use crate::rule::{self, Rule};
use crate::ruleset::compile::{Table as RuleTable, TableOptions};
use crate::ruleset::history::History;

/// The number of packets in a turn.
const REPEATS: u32 = 100_000;

/// The number of new flows, each a run of its own.
const FLOWS: u16 = 2000;

/// The figures of all programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    costs: Vec<Line>,
    flows: Vec<Line>,
    programs: Vec<Line>,
}

impl Figures {
    /// The tables for the report.
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

/// A program in the object.
#[derive(Clone, Copy)]
struct Code {
    name: &'static str,
    is_xdp: bool,
}

/// A program, and the source of its packets.
#[derive(Clone, Copy)]
struct Program {
    /// The name in reports.
    title: &'static str,
    /// The name in the object.
    name: &'static str,
    empty: &'static str,
    is_xdp: bool,
    is_ingress: bool,
}

const PROGRAMS: [Program; 3] = [
    Program {
        title: "xdp",
        name: "portredir_frags",
        empty: "portredir_pass",
        is_xdp: true,
        is_ingress: true,
    },
    Program {
        title: "tc ingress",
        name: "portredir_in",
        empty: "portredir_next",
        is_xdp: false,
        is_ingress: true,
    },
    Program {
        title: "tc egress",
        name: "portredir_out",
        empty: "portredir_next",
        is_xdp: false,
        is_ingress: false,
    },
];

/// All programs that handle Ethernet packets, for the table of sizes.
const SIZES: [(&str, bool); 4] = [
    ("portredir_xdp", true),
    ("portredir_frags", true),
    ("portredir_in", false),
    ("portredir_out", false),
];

/// The effect of a run on the counters.
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
    /// The index of its datapath.
    rig: usize,
    code: Code,
    packet: Vec<u8>,
    counted: Counted,
    /// Nanoseconds per packet, a number for each round; none when a round did not do what
    /// it should.
    times: Option<Vec<f64>>,
}

/// Measures in this number of rounds, and prints [`Figures`] as a line of JSON.
///
/// # Errors
///
/// When the programs do not load or run.
pub fn prog_run(rounds: u32) -> anyhow::Result<()> {
    // One datapath has only the rules that matter, the other as many as possible.
    let mut rigs = [rig(0)?, rig(9_998)?];
    let mut subjects = subjects();
    for _ in 0..rounds {
        for subject in &mut subjects {
            subject.measure(&mut rigs[subject.rig], REPEATS)?;
            // This shows the kernel that a real-time process is not stuck.
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
        tcp_flows: max_tcp_flows.get(),
        udp_flows: max_udp_flows.get(),
    };
    let mut datapath = Datapath::load(sizes.into(), None)?;
    let fillers = (0..fillers).map(|i| format!("{}:{}/both", 20_000 + i, 30_000 + i));
    let there_and_back = [(PUBLIC, TARGET), (TARGET, PUBLIC)];
    let there_and_back =
        there_and_back.map(|(from, to)| format!("{}:{}/both", from.get(), to.get()));
    let words: Vec<_> = fillers.chain(there_and_back).collect();
    let rules = rule::from_words(&words)?
        .into_iter()
        .map(|sourced| sourced.rule);
    let rules: Vec<(u16, Rule)> = (0..).zip(rules).collect();
    datapath.commit(&RuleTable::compile(
        &rules,
        &History::default(),
        TableOptions::default(),
        |_| None,
    )?)?;
    let generation = datapath.generation();
    datapath.set_on(generation, &BTreeMap::new())?;
    let hosts = [true, false].map(|is_ipv4| (addr(is_ipv4, HOST).octets(), local::ANYWHERE));
    datapath.set_local(&HashMap::from(hosts).into())?;
    let last = u16::try_from(rules.len() - 1)?;
    for kind in KINDS {
        // The flow through 80 to 8080, and the flow back that it is the next time.
        let there = Known {
            local_port: TARGET,
            dst_port: PUBLIC,
            rule: last - 1,
        };
        let back = Known {
            local_port: PUBLIC,
            dst_port: TARGET,
            rule: last,
        };
        remember(&datapath, kind, there)?;
        remember(&datapath, kind, back)?;
    }
    Ok(datapath)
}

/// The ports and the rule of a flow in the table.
struct Known {
    local_port: Port,
    dst_port: Port,
    rule: u16,
}

/// Inserts a flow.
fn remember(datapath: &Datapath, kind: Kind, known: Known) -> anyhow::Result<()> {
    let Known {
        local_port,
        dst_port,
        rule,
    } = known;
    let flow = Flow {
        dst_port,
        client_port: CLIENT_PORT,
        rule,
        seen: now()?,
    };
    let table = match kind.protocol {
        Protocol::Tcp => FlowTable::Tcp,
        Protocol::Udp => FlowTable::Udp,
    };
    let key = kind.key(local_port);
    let flows = datapath.flows()?;
    let (bucket, hash) = flows.bucket(table, &key);
    bucket.put(hash, key.local_port, Entry::new(hash, &flow));
    Ok(())
}

/// The time now, as the programs have it.
fn now() -> anyhow::Result<Epoch> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(Epoch::at(u64::try_from(now.as_nanos())?))
}

/// A packet for a program.
struct Case<'a> {
    name: &'a str,
    rig: usize,
    code: Code,
    kind: Kind,
    port: Port,
    counted: Counted,
}

fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for program in PROGRAMS {
        let (hit, counted, port) = if program.is_ingress {
            ("redirected", Counted::AtARule, PUBLIC)
        } else {
            ("restored", Counted::As(Reason::Restored), TARGET)
        };
        let empty = subjects.len();
        let mut add = |case: Case<'_>| subjects.push(program.subject(case, empty));
        let no_rule = Case {
            name: "empty",
            rig: 0,
            code: program.empty(),
            kind: KINDS[0],
            port: OTHER,
            counted: Counted::Nowhere,
        };
        add(Case { ..no_rule });
        for (rig, rules) in [(0, ""), (1, ", 10000 rules")] {
            add(Case {
                name: &format!("no rule, TCP v4{rules}"),
                rig,
                code: program.code(),
                ..no_rule
            });
            for kind in KINDS {
                add(Case {
                    name: &format!("{hit}, {}{rules}", kind.name),
                    rig,
                    code: program.code(),
                    kind,
                    port,
                    counted,
                });
            }
        }
    }
    subjects
}

impl Program {
    const fn code(self) -> Code {
        Code {
            name: self.name,
            is_xdp: self.is_xdp,
        }
    }

    /// The program that does nothing.
    const fn empty(self) -> Code {
        Code {
            name: self.empty,
            is_xdp: self.is_xdp,
        }
    }

    /// The subject of a case; `empty` is the line that it is compared with.
    fn subject(self, case: Case<'_>, empty: usize) -> Subject {
        Subject {
            name: format!("{}: {}", self.title, case.name),
            empty: Some(empty),
            rig: case.rig,
            code: case.code,
            packet: case.kind.packet(Shape {
                client_port: CLIENT_PORT,
                port: case.port,
                is_ingress: self.is_ingress,
                is_syn: false,
            }),
            counted: case.counted,
            times: Some(Vec::new()),
        }
    }
}

impl Subject {
    /// Adds a round.
    fn measure(&mut self, rig: &mut Datapath, repeats: u32) -> anyhow::Result<()> {
        let Some(times) = &mut self.times else {
            return Ok(());
        };
        let before = counts(rig)?;
        let ns = run(rig, self.code, &self.packet, repeats)?;
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

/// The packets that matched rules, the flows, and the packets by reason.
fn counts(rig: &Datapath) -> anyhow::Result<(u64, u64, Vec<u64>)> {
    let counters = rig.counters()?;
    let requests = counters
        .requests
        .values()
        .map(|counter| (counter.packets, counter.flows));
    let (packets, flows) = requests.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    let mut reasons = rig.reasons()?;
    let replies: u64 = counters.replies.values().map(|sum| sum.packets).sum();
    reasons[Reason::Restored as usize] += replies;
    Ok((packets, flows, reasons))
}

/// Runs a program; returns nanoseconds per packet.
fn run(rig: &mut Datapath, code: Code, packet: &[u8], repeats: u32) -> anyhow::Result<f64> {
    let Code { name, is_xdp } = code;
    let options = TestRunOptions {
        data_in: Some(packet),
        repeat: repeats,
        ..TestRunOptions::new()
    };
    let result = if is_xdp {
        rig.program::<Xdp>(name)?.test_run(options)
    } else {
        rig.program::<SchedClassifier>(name)?.test_run(options)
    };
    let result = result.with_context(|| format!("run {name}"))?;
    Ok(result.duration.as_secs_f64() * 1e9)
}

/// A flow begins only once, so each run is one of its own.
fn first_packets(rig: &mut Datapath, flows: u16) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    // These flows have other client ports than the flows that are known.
    let mut ports = 2000..;
    for program in PROGRAMS.iter().filter(|program| program.is_ingress) {
        for (name, kind) in [("UDP v4", KINDS[2]), ("SYN v4", KINDS[0])] {
            let (mut first, mut second) = (Vec::new(), Vec::new());
            let (packets_before, flows_before, _) = counts(rig)?;
            for port in ports.by_ref().take(flows.into()) {
                let packet = kind.packet(Shape {
                    client_port: Port::new(port),
                    port: PUBLIC,
                    is_ingress: true,
                    is_syn: true,
                });
                let mut once = || run(rig, program.code(), &packet, 1);
                first.push(once()?);
                second.push(once()?);
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
    for (name, is_xdp) in SIZES {
        let info = if is_xdp {
            rig.program::<Xdp>(name)?.info()
        } else {
            rig.program::<SchedClassifier>(name)?.info()
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
