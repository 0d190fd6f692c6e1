//! Targets with an address: flows that this host forwards.
//!
//! Most tests compare with DNAT of nftables, as [`crate::conformance`] does with
//! REDIRECT: the same stimulus, and the same observation of what arrived at the client
//! and at the targets, header by header. `forward/oracle.md` has the outcomes with
//! nftables, and `forward/differences.toml` those that may differ, with the reasons. A
//! [`case`] runs on the hosts of a [`site`]; packets are made by a [`probe`] and read by
//! a [`packet`] reader.
//!
//! Beside that there are real servers as targets ([`real`], [`http3`]), several targets that
//! are drained and die under many flows ([`target`]), connections of a dead target that are
//! cut or stay ([`cut`]), changes that are killed ([`kill`]), floods ([`flood`]), clients on
//! the host itself ([`local`]), and ports whose flows somebody else's DNAT forwards
//! ([`nodeport`]).

mod case;
mod change;
mod cut;
mod differences;
mod document;
mod flood;
mod flow;
mod header;
mod host;
mod http3;
mod icmp;
mod kill;
mod local;
mod nodeport;
mod packet;
mod probe;
mod real;
mod results;
mod rules;
mod site;
mod subject;
mod talk;
mod target;
mod upgrade;

use self::case::Case;
use self::results::cell;
use self::subject::{SUBJECTS, Subject};
use crate::conformance::outcome::Outcome;
use crate::conformance::{FAILED, compare};
use crate::{Tests, skip};

/// The tools that these tests need beyond those of all tests.
const TOOLS: &[&str] = &["nft"];

/// Cases about one thing.
struct Topic {
    title: &'static str,
    cases: &'static [Case],
}

/// All cases, by topic.
#[rustfmt::skip]
const TOPICS: &[Topic] = &[
    Topic { title: "Headers and connections", cases: header::CASES },
    Topic { title: "ICMP", cases: icmp::CASES },
    Topic { title: "Flows that meet, the host itself, containers", cases: flow::CASES },
    Topic { title: "Settings and firewalls of the host", cases: host::CASES },
    Topic { title: "Changes", cases: change::CASES },
];

fn cases() -> impl Iterator<Item = &'static Case> {
    TOPICS.iter().flat_map(|topic| topic.cases)
}

pub fn add(tests: &mut Tests, filter: Option<&str>) {
    if let Some(filter) = filter {
        results::limit_to(filter);
    }
    for case in cases() {
        tests.add(test_name(case, Subject::Nft), TOOLS, || {
            check_oracle(case);
        });
        for subject in SUBJECTS.into_iter().skip(1) {
            tests.add(test_name(case, subject), TOOLS, move || {
                check(case, subject)
            });
        }
    }
    tests.add("forward/oracle", TOOLS, document::check_oracle);
    tests.add(DOCUMENT_TEST, TOOLS, document::check);
    tests.add("forward/differences", TOOLS, || {
        differences::read();
    });
    nodeport::add(tests);
    real::add(tests);
    http3::add(tests);
    target::add(tests);
    cut::add(tests);
    kill::add(tests);
    flood::add(tests);
    upgrade::add(tests);
    local::add(tests);
}

/// The name of the test that runs every case.
const DOCUMENT_TEST: &str = "forward/document";

fn test_name(case: &Case, subject: Subject) -> String {
    format!("forward/{}/{}", subject.name(), case.name)
}

/// The oracle does what is committed.
fn check_oracle(case: &'static Case) {
    let seen = oracle(case);
    let committed = document::committed_outcome(case);
    assert!(
        !seen.contains(FAILED) && seen == committed,
        "case {}, {}: the oracle differs from what is committed\n  stimulus: {}\n  \
         committed: {committed}\n  seen: {seen}",
        case.number,
        case.name,
        case.stimulus,
    );
}

/// An engine does what the oracle does, or differs as is listed.
fn check(case: &'static Case, subject: Subject) {
    let seen = match cell(case, subject) {
        Outcome::Seen(text) => text,
        Outcome::Skipped(reason) => skip(reason),
    };
    let oracle = oracle(case);
    let all = differences::read();
    let allowed = crate::conformance::differences::find(&all, case.name, subject.name());
    for text in [&oracle, &seen] {
        assert!(!text.contains(FAILED), "case {}: {text}", case.name);
    }
    if let Err(why) = compare(&oracle, &seen, allowed) {
        panic!(
            "case {}, {}: {why}\n  stimulus: {}\n  oracle: {oracle}\n  {}: {seen}",
            case.number,
            case.name,
            case.stimulus,
            subject.name(),
        );
    }
}

/// The outcome of a case with nft.
fn oracle(case: &'static Case) -> String {
    match cell(case, Subject::Nft) {
        Outcome::Seen(text) => text,
        Outcome::Skipped(reason) => skip(reason),
    }
}
