//! Reports for tests and pictures: a host with three interfaces and four rules.

use jiff::{SignedDuration, Timestamp};

use super::model::Sample;
use super::rate::Identity;
use crate::observe::attached::{HookState, Interface};
use crate::observe::report::{Hits, Report, RuleOutcomes, RuleReport};
use crate::state::attachment::InterfaceReport;

/// The rules; the packets of each on eth0 in second 10, and how they vary.
const RULES: [(&str, u64); 4] = [
    ("80:8080", 1200),
    ("443:8443/both", 400),
    ("53:5353/udp", 0),
    ("[2001:db8::1]:25:2525 from 2001:db8:7::/48", 7),
];

fn hits(packets: u64, each: u64) -> Hits {
    Hits {
        packets: Some(packets),
        bytes: Some(packets * 70),
        packets_out: Some(packets * 3 / 4),
        bytes_out: Some(packets * 900),
        flows: packets / each,
        ..Hits::default()
    }
}

fn interface(name: &str, (engine, mode): (&str, &str), state: HookState) -> Interface {
    let why = match name {
        "lo" => "conntrack would classify packets rewritten on loopback as INVALID",
        "eth0" => "driver igb supports native XDP",
        _ => "WireGuard has no Ethernet header",
    };
    let report = InterfaceReport {
        name: name.to_owned(),
        ifindex: 1,
        engine: engine.to_owned(),
        mode: mode.to_owned(),
        why: why.to_owned(),
    };
    Interface {
        state: Some(state),
        ..Interface::new(report, Vec::new())
    }
}

/// The time of the first report.
pub fn start() -> Timestamp {
    "2026-11-28T09:19:27Z".parse().expect("a time")
}

/// The report after a number of seconds.
pub fn report(second: u64) -> Report {
    // More and less traffic, every ten seconds.
    let wave = |packets: u64| {
        (0..second)
            .map(|second| packets * (second % 10) / 5)
            .sum::<u64>()
    };
    let rules = RULES.map(|(rule, packets)| {
        let eth0 = hits(wave(packets), 10);
        let local = Hits {
            flows: second * packets / 300,
            ..Hits::default()
        };
        let total = Hits {
            flows: eth0.flows + local.flows,
            ..eth0
        };
        let refused = if packets == 7 { second } else { 0 };
        let has_tcp = !rule.ends_with("/udp");
        let outcomes = RuleOutcomes {
            accepted: has_tcp.then_some(eth0.flows.saturating_sub(refused)),
            refused: Some(refused),
            unanswered: None,
        };
        let mut interfaces = vec![("eth0".to_owned(), eth0)];
        if packets > 300 {
            interfaces.push(("lo".to_owned(), local));
        }
        interfaces.retain(|_| packets > 0);
        RuleReport {
            rule: rule.to_owned(),
            total,
            outcomes,
            interfaces: interfaces.into_iter().collect(),
        }
    });
    Report {
        schema: 1,
        time: start() + SignedDuration::from_secs(second.try_into().expect("a second")),
        rules: rules.into(),
        interfaces: vec![
            interface("lo", ("local", "cgroup"), HookState::Attached),
            interface("eth0", ("xdp", "native"), HookState::Attached),
            interface("wg0", ("tc", "tcx"), HookState::Missing),
        ],
        drops: [
            ("no_free_port".to_owned(), 3),
            ("truncated".to_owned(), second),
            ("unknown".to_owned(), 0),
        ]
        .into(),
        passes: [("restored".to_owned(), wave(1000))].into(),
    }
}

/// The answer of a process after a number of seconds.
pub fn sample(second: u64) -> Sample {
    Sample {
        identity: Identity {
            since: Some(start().to_string()),
            pid: None,
        },
        title: "portredir 0.1.0: active, watcher process 812".to_owned(),
        report: report(second),
    }
}
