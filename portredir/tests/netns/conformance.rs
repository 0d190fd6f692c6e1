//! Conformance with netfilter: the same stimulus to a host that redirects with
//! nftables and to one that redirects with portredir, and the same observation of
//! the outcome. Every difference has to be listed, with the reason, in
//! `conformance/differences.toml`. `docs/CONFORMANCE.md` has all outcomes;
//! [`document`] writes it.
//!
//! A [`case`] is a stimulus and a small function. Most run one after another on
//! hosts that they share ([`site`]) and are kept apart by their ports; some
//! have hosts of their own. Clients have sockets ([`client`]) or make packets
//! of their own ([`ghost`], with [`frame`] and [`wire`]; [`decode`] reads the
//! replies). A [`server`] sends its name to every client.

mod case;
mod checksum;
pub mod client;
mod coexist;
mod decode;
mod device;
pub mod differences;
pub mod document;
pub mod frame;
mod ghost;
mod header;
mod icmp;
mod local;
pub mod observe;
pub mod outcome;
mod results;
mod rules;
pub mod server;
pub mod site;
mod state;
pub mod tcp;
mod udp;
pub mod wire;

use self::case::{Case, Oracle};
use self::differences::Difference;
use self::results::{Cell, cell};
use self::site::{SUBJECTS, Subject};
use crate::{Tests, skip};

/// The tools that these tests need beyond those of all tests.
const TOOLS: &[&str] = &["nft", "python3"];

/// Cases about one thing.
struct Topic {
    title: &'static str,
    cases: &'static [Case],
}

/// All cases, by topic.
#[rustfmt::skip]
const TOPICS: &[Topic] = &[
    Topic { title: "TCP", cases: tcp::CASES },
    Topic { title: "UDP", cases: udp::CASES },
    Topic { title: "Checksums and offload", cases: checksum::CASES },
    Topic { title: "Fragments and headers", cases: header::CASES },
    Topic { title: "ICMP", cases: icmp::CASES },
    Topic { title: "State", cases: state::CASES },
    Topic { title: "The host itself, containers, others", cases: local::CASES },
    Topic { title: "Devices", cases: device::CASES },
    Topic { title: "Coexistence and rules", cases: coexist::CASES },
];

fn cases() -> impl Iterator<Item = &'static Case> {
    TOPICS.iter().flat_map(|topic| topic.cases)
}

pub fn add(tests: &mut Tests, filter: Option<&str>) {
    if let Some(filter) = filter {
        results::limit_to(filter);
    }
    for subject in &SUBJECTS[1..] {
        for case in cases() {
            if !case.families(*subject).is_empty() {
                tests.add(test_name(case, *subject), TOOLS, || check(case, *subject));
            }
        }
    }
    tests.add("conformance/differences", TOOLS, differences);
    tests.add(DOCUMENT_TEST, TOOLS, document::check);
}

/// The mark of an outcome whose case failed itself.
pub const FAILED: &str = "failed at ";

/// The name of the test that runs every case.
const DOCUMENT_TEST: &str = "conformance/document";

fn test_name(case: &Case, subject: Subject) -> String {
    format!("conformance/{}/{}", subject.name(), case.name)
}

/// An engine does what the oracle says, or differs as is listed.
fn check(case: &'static Case, subject: Subject) {
    let seen = match cell(case, subject) {
        Cell::Seen(text) => text,
        Cell::Skipped(reason) => skip(reason),
        Cell::NotTried => unreachable!("a test of what is not tried"),
    };
    let oracle = oracle(case);
    let all = differences::read();
    let allowed = differences::find(&all, case.name, subject.name());
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

/// Whether an outcome is the oracle's, or the one that is allowed instead.
pub fn compare(oracle: &str, seen: &str, allowed: Option<&Difference>) -> Result<(), &'static str> {
    match allowed {
        None if oracle == seen => Ok(()),
        None => Err("differs from the oracle, and no difference is listed"),
        Some(_) if oracle == seen => Err("a difference is listed, and there is none"),
        Some(difference) if difference.outcome == seen => Ok(()),
        Some(_) => Err("differs from the oracle in another way than is listed"),
    }
}

/// The expected outcome of a case.
fn oracle(case: &'static Case) -> String {
    let seen = match (case.oracle, cell(case, Subject::Nft)) {
        (Oracle::Demanded(text), _) => return text.to_owned(),
        (Oracle::Feature(text), Cell::Skipped(_)) => return text.to_owned(),
        (_, Cell::Skipped(reason)) => skip(reason),
        (_, Cell::NotTried) => unreachable!("an oracle that is not tried"),
        (_, Cell::Seen(text)) => text,
    };
    if let Oracle::Feature(text) = case.oracle {
        assert_eq!(seen, text, "what the oracle says of case {}", case.name);
    }
    seen
}

/// Every listed difference is about a case and an engine that are tested.
fn differences() {
    let mut is_wrong = false;
    for difference in differences::read() {
        for name in &difference.cases {
            for engine in &difference.engines {
                let case = cases().find(|case| case.name == name);
                let case = case.expect("a known case");
                if !case.subjects().any(|subject| subject.name() == engine) {
                    crate::lab::process::note(&format!("{name} is not tried by {engine}"));
                    is_wrong = true;
                }
            }
        }
    }
    assert!(!is_wrong, "differences.toml lists what cannot be");
    let mut names: Vec<_> = cases().map(|c| c.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "two cases have one name");
}
