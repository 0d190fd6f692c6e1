//! Lists in which rules shadow others, and long lists.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use portredir_common::map::rules::PortEntry;
use portredir_common::net::Port;
use proptest::collection::vec;
use proptest::prelude::*;

use super::arbitrary::{chosen, near_rule, probes};
use super::rule;
use crate::rule::{Label, Origin, Ports, Protocols, Rule, Sourced};
use crate::ruleset::compile::{Table, TableOptions};
use crate::ruleset::history::History;
use crate::ruleset::shadow::{ConflictError, check};

/// Lists in which a rule never matches.
const REFUSED: &[&[&str]] = &[
    &["80:8080", "80:8080"],
    &["80:8080", "443:8443", "80:8081"],
    &[
        "80:8080",
        "80:8080/tcp from 10.0.0.0/8",
        "port=80:proto=tcp:toport=8080",
    ],
    &["80-90:8080", "80-90:9090"],
    &["70-99:8080", "80-90:8081", "80-90:9090"],
    &["80:8080", "81:8081", "80-81:9090"],
    &["80:8080/both", "80:8081"],
    &["80:8080", "80:8081/udp", "80:8082/both"],
    &["80:8080", "80:8081 on eth0"],
    &["80:8080 on eth0,eth1", "80:8081 on eth1"],
    &["80:8080 on eth0", "80:8081 on eth1", "80:8082 on eth0,eth1"],
    &["80:8080 on eth*", "80:8081 on eth0"],
    &["80:8080 on *", "80:8081"],
    &["80:8080 on wg0,eth0", "80:8081 on eth0,wg0"],
    &["80:8080 from 10.0.0.0/8", "80:8081 from 10.0.0.0/8"],
    &[
        "80:8080 from 10.0.0.0/8",
        "80:8081 from 10.0.0.0/9",
        "80:8082 from 10.128.0.0/9",
    ],
    &["80:8080", "80:8081 from 0.0.0.0/0", "80:8082 from ::/0"],
    &["10.0.0.5:80:8080", "10.0.0.5:80:8081 from 0.0.0.0/0"],
    &["10.0.0.5:80:8080", "10.0.0.5:80:8081"],
    &["1:8080", "2:8080", "3:8080", "4:8080", "5:8080", "1-5:9090"],
    &["8000-8010:9000", "8000-8010:9001"],
    &["80:10.0.0.5", "80:10.0.0.6=3"],
    &["80:10.0.0.5", "80:10.0.0.5 cut"],
    &["80:10.0.0.5,10.0.0.6", "80:8080 on eth0"],
    &["80:10.0.0.5", "1-100:10.0.0.5", "80:80,10.0.0.6"],
];

/// Lists in which each rule can match.
const ACCEPTED: &[&[&str]] = &[
    &["80:9090", "80-90:8080"],
    &["80-90:8080", "85:9090"],
    &["80-90:8080", "85-90:9090"],
    &["1-65535:8080", "8081:9090"],
    &["1-100:10.0.0.5", "80:80,10.0.0.6"],
    &["80-90:8080 on eth0", "85:9090"],
    &["80-90:8080", "85-95:9090"],
    &["80:8080", "80:8081/both"],
    &["80:8080", "80:8081 from 10.0.0.0/8"],
    &["80:8080 from 10.0.0.0/8", "80:8081"],
    &["80:8080", "10.0.0.5:80:8081"],
    &["10.0.0.5:80:8080", "80:8081"],
    &["80:8080 on eth0", "80:8081"],
    &["80:8080 on eth0,eth1", "80:8081 on eth1,eth2"],
    &[
        "80:8080 on eth0",
        "80:8081 on eth1",
        "80:8082 on eth0,eth1,eth2",
    ],
    &["80:8080 on eth0", "80:8081 on eth*"],
    &["80:8080 on eth?", "80:8081 on eth*"],
    &["80:8080", "80:8081 from 0.0.0.0/0"],
    &[
        "80:8080",
        "80:8081 from 0.0.0.0/1",
        "80:8082 from 128.0.0.0/1",
    ],
    &["80:8080", "80:8081 from ::/0", "80:8082 from 0.0.0.0/1"],
    &["10.0.0.5:80:8080", "80:8081 from 0.0.0.0/0"],
    &["80:8080", "8080:80"],
    &["80:8080", "8080:9090"],
    // The range leaves its own target to others.
    &["1-65535:8080", "8080:9090"],
    &["80:10.0.0.5", "80:8080 from 10.0.0.0/8"],
    &["80:10.0.0.5", "80:10.0.0.5/udp"],
];

fn sourced(rules: impl IntoIterator<Item = Rule>) -> Vec<Sourced> {
    let origins = (1..).map(Origin::Argument);
    let rules = rules.into_iter().zip(origins);
    rules
        .map(|(rule, origin)| Sourced {
            rule,
            label: Label::default(),
            origin,
        })
        .collect()
}

fn list(texts: &[&str]) -> Vec<Sourced> {
    sourced(texts.iter().map(|text| rule(text)))
}

#[test]
fn messages() {
    let mut all = String::new();
    for texts in REFUSED {
        let error = check(&list(texts)).expect_err(&texts.join("  "));
        writeln!(all, "{}\n{error}\n", texts.join("  ")).expect("a string takes all");
    }
    let mut places = list(&["80:8080", "80:8081", "80:8082"]);
    places[0].origin = Origin::Running;
    places[1].origin = Origin::File {
        path: PathBuf::from("/etc/portredir/rules.toml"),
        line: 7,
    };
    places.remove(2);
    let error = check(&places).expect_err("one of a file");
    writeln!(all, "one that runs and one of a file\n{error}\n").expect("a string takes all");
    let many = vec![places[0].clone(); (1 << 16) + 1];
    let error = check(&many).expect_err("too many");
    writeln!(all, "65537 rules\n{error}\n").expect("a string takes all");
    let lists = sourced((0..64).map(|i| rule(&format!("80:8080 on eth{i}"))));
    let error = check(&lists).expect_err("too many lists");
    writeln!(all, "64 lists\n{error}").expect("a string takes all");
    insta::assert_snapshot!(all);
}

#[test]
fn what_leaves_something_is_accepted() {
    for texts in ACCEPTED {
        assert_eq!(check(&list(texts)), Ok(()), "{texts:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// The check agrees with a look at every possible packet.
    #[test]
    fn a_rule_is_refused_when_no_packet_is_for_it(rules in vec(near_rule(), 1..9)) {
        let probes = probes();
        let mut is_used = vec![false; rules.len()];
        for i in probes.iter().filter_map(|probe| chosen(&rules, probe)) {
            is_used[i] = true;
        }
        let unused = is_used.iter().position(|is_used| !is_used);
        let places = sourced(rules.clone());
        match check(&places) {
            Ok(()) => prop_assert_eq!(unused, None),
            Err(ConflictError::Shadowed { shadowed, by }) => {
                prop_assert_eq!(unused.map(|i| &places[i]), Some(&*shadowed));
                // The rules that the error names shadow it without the others.
                let mut alone: Vec<_> = by.iter().map(|by| (by.origin.clone(), by.rule.clone())).collect();
                alone.push((shadowed.origin.clone(), shadowed.rule.clone()));
                alone.sort_by_key(|(origin, _)| match origin {
                    Origin::Argument(i) => *i,
                    _ => 0,
                });
                let place = alone.iter().position(|(origin, _)| *origin == shadowed.origin);
                let alone: Vec<_> = alone.into_iter().map(|(_, rule)| rule).collect();
                prop_assert!(
                    !probes.iter().any(|probe| chosen(&alone, probe) == place),
                    "{} is not shadowed by {:?}", shadowed.rule, by
                );
            }
            Err(ConflictError::Twice { first, again }) => {
                let at = |origin: &Origin| places.iter().position(|place| place.origin == *origin);
                let (first, again) = (at(&first), at(&again.origin));
                prop_assert_eq!(unused, again);
                prop_assert!(first < again && first.map(|i| &rules[i]) == again.map(|i| &rules[i]));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}

/// Ten thousand rules, in lists of many shapes.
fn many() -> Vec<(&'static str, Vec<String>)> {
    let shape = |f: &dyn Fn(usize) -> String| (0..10_000).map(f).collect::<Vec<_>>();
    let net = |i: usize| format!("10.{}.{}.0/24", i / 256, i % 256);
    let addr = |i: usize| format!("10.1.{}.{}", i / 250, i % 250 + 1);
    vec![
        (
            "one port each",
            shape(&|i| format!("{}:{}", i + 1, i + 20_001)),
        ),
        (
            "one client each",
            shape(&|i| format!("80:8080/both from {}", net(i))),
        ),
        (
            "one address each",
            shape(&|i| format!("{}:80:8080/both", addr(i))),
        ),
        (
            "all ports, one client each",
            shape(&|i| format!("1-65535:8080/both from {}", net(i))),
        ),
        (
            "all ports, one address each",
            shape(&|i| format!("{}:1-65535:8080/both", addr(i))),
        ),
        (
            "63 lists of interfaces",
            shape(&|i| format!("{}:{}/both on eth{},wg*", i + 1, i + 20_001, i % 63)),
        ),
        (
            "ranges, each within the next",
            shape(&|i| format!("{}-{}:60000", 10_001 - i, 10_001 + i)),
        ),
        (
            "ranges, each beginning in the one before",
            shape(&|i| format!("{}-{}:60000", i + 1, i + 5_001)),
        ),
        (
            "ports below one client each of all ports",
            shape(&|i| match i {
                0..10 => format!("1-65535:8080 from {}", net(i)),
                _ => format!("{}:{}", i + 1, i + 20_001),
            }),
        ),
        (
            "some all ports by client, the others a port each, of a hundred addresses",
            shape(&|i| match i {
                0..1_000 => format!("{}:1-65535:8080/both from {}", addr(i % 100), net(i / 100)),
                _ => format!("{}:{}:9090", addr(i % 100), 10 + i / 100),
            }),
        ),
        (
            "nested prefixes on all ports",
            shape(&|i| match i {
                0..5 => format!("1-65535:8080/both from 10.0.0.0/{}", 8 + i),
                _ => format!("{}:1-65535:8080/both from 10.0.0.0/8", addr(i)),
            }),
        ),
    ]
}

#[test]
fn ten_thousand_rules() {
    for (shape, texts) in many() {
        let start = Instant::now();
        let rules: Vec<_> = texts.iter().map(|text| rule(text)).collect();
        let parsed = start.elapsed();
        let places = sourced(rules);
        let start = Instant::now();
        check(&places).unwrap_or_else(|error| panic!("{shape}: {error}"));
        let checked = start.elapsed();
        let numbered: Vec<_> = (0..)
            .zip(places.into_iter().map(|place| place.rule))
            .collect();
        let start = Instant::now();
        let table = Table::compile(
            &numbered,
            &History::default(),
            TableOptions::default(),
            |_| None,
        );
        let compiled = start.elapsed();
        let table = table.unwrap_or_else(|error| panic!("{shape}: {error}"));
        let start = Instant::now();
        let all: Vec<_> = numbered.into_iter().map(|(_, rule)| rule).collect();
        let history = History::default().after(&all, &[], |_, _, _| false);
        let forgotten = start.elapsed();
        println!(
            "10000 rules, {shape}: parse {parsed:.1?}, check {checked:.1?}, compile \
             {compiled:.1?}, take down {forgotten:.1?}; {} entries for addresses, {} for clients",
            table.addrs.len(),
            table.sources.len()
        );
        assert!(!history.is_empty(), "{shape}");
        let alike: HashSet<_> = all
            .iter()
            .map(|rule| (rule.ports, rule.here().expect("one target"), rule.protocols))
            .collect();
        // The test takes some of the ports: each has to look at each rule.
        for port in (1..=u16::MAX).step_by(199).map(Port::new) {
            for &protocol in Protocols::Both.each() {
                let place = PortEntry::index(protocol, port);
                let is_redirected = alike.iter().any(|(ports, target, protocols)| {
                    let is_itself = *target == Ports::one(port);
                    protocols.each().contains(&protocol) && ports.contains(port) && !is_itself
                });
                let entry = table.ports[place as usize];
                assert_eq!(entry.is_match(), is_redirected, "{shape}: {port:?}");
            }
        }
    }
}
