//! What was seen, kept for the tests and for the document.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::case::{Case, Run};
use super::cases;
use super::observe::Observation;
use super::site::{SUBJECTS, Site, Subject};
use crate::checksum;
use crate::lab::Family;
use crate::process::{DEADLINE, NOTES, note};

/// A case that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(40);

/// What was seen of a case by one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// In words.
    Seen(String),
    /// The kernel cannot do it.
    Skipped(String),
    /// It makes no sense.
    NotTried,
}

/// What was seen once.
#[derive(Clone, Debug)]
struct Once {
    variant: Variant,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Seen(String),
    Skipped(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    is_offloaded: bool,
    family: Family,
}

type Results = BTreeMap<u16, Vec<Once>>;

/// What was seen of a case by a subject; it is run when it is first asked for.
pub fn cell(case: &'static Case, subject: Subject) -> Cell {
    if case.families(subject).is_empty() {
        return Cell::NotTried;
    }
    let all = match case.run {
        Run::Shared(_) => shared(subject).get(&case.number).cloned(),
        Run::Own(run) => Some(own(case.number, subject, run)),
    };
    let all = all.expect("all cases were run");
    let skipped = all.iter().find_map(|once| match &once.outcome {
        Outcome::Skipped(reason) => Some(reason.clone()),
        Outcome::Seen(_) => None,
    });
    match skipped {
        Some(reason) => Cell::Skipped(reason),
        None => Cell::Seen(summary(&all)),
    }
}

/// One text, where it was the same each time.
fn summary(all: &[Once]) -> String {
    let text = |once: &Once| match &once.outcome {
        Outcome::Seen(text) | Outcome::Skipped(text) => text.clone(),
    };
    let is_same = |among: &[&Once]| among.iter().all(|once| once.outcome == among[0].outcome);
    let of = |family| -> Vec<_> {
        let is_it = |once: &&Once| once.variant.family == family;
        all.iter().filter(is_it).collect()
    };
    let (v4, v6) = (of(Family::V4), of(Family::V6));
    if is_same(&all.iter().collect::<Vec<_>>()) {
        text(&all[0])
    } else if is_same(&v4) && is_same(&v6) {
        format!("IPv4: {}. IPv6: {}", text(v4[0]), text(v6[0]))
    } else {
        let each = all.iter().map(|once| {
            let offload = if once.variant.is_offloaded {
                "on"
            } else {
                "off"
            };
            format!(
                "offload {offload}, {:?}: {}",
                once.variant.family,
                text(once)
            )
        });
        each.collect::<Vec<_>>().join(". ")
    }
}

/// All cases that share hosts, by one subject.
fn shared(subject: Subject) -> &'static Results {
    static RESULTS: [OnceLock<Results>; SUBJECTS.len()] =
        [const { OnceLock::new() }; SUBJECTS.len()];
    let index = SUBJECTS.iter().position(|known| *known == subject);
    RESULTS[index.expect("a subject")].get_or_init(|| {
        // The two wait more than they work.
        let halves = std::thread::scope(|scope| {
            let halves = [true, false]
                .map(|is_offloaded| scope.spawn(move || run_shared(subject, is_offloaded)));
            halves.map(|half| half.join().expect("panics are caught"))
        });
        let mut results = Results::new();
        for (number, once) in halves.into_iter().flatten() {
            results.entry(number).or_default().push(once);
        }
        results
    })
}

fn run_shared(subject: Subject, is_offloaded: bool) -> Vec<(u16, Once)> {
    let start = Instant::now();
    DEADLINE.set(Some(start + Duration::from_secs(60)));
    let site = caught(|| Site::new(subject, is_offloaded));
    let mut results = Vec::new();
    let mut times = Vec::new();
    for case in cases() {
        let Run::Shared(run) = case.run else { continue };
        for &family in case.families(subject) {
            let start = Instant::now();
            let outcome = match &site {
                Ok(site) => observe(|| watched(site, || run(site, family))),
                Err(outcome) => outcome.clone(),
            };
            let variant = Variant {
                is_offloaded,
                family,
            };
            results.push((case.number, Once { variant, outcome }));
            times.push((start.elapsed(), case.name, family));
        }
    }
    let end = caught(|| site.map(|mut site| site.finish()));
    if let Err(Outcome::Seen(text)) = end {
        // There is no case to put it to: let them all fail.
        for (_, once) in &mut results {
            once.outcome = Outcome::Seen(format!("the end: {text}"));
        }
    }
    if std::env::var_os("PORTREDIR_TIMES").is_some() {
        times.sort_by_key(|(time, ..)| *time);
        let slowest: Vec<_> = times.iter().rev().take(12).collect();
        eprintln!(
            "{subject:?} {is_offloaded}: {:?}: {slowest:?}",
            start.elapsed()
        );
    }
    results
}

/// One case on hosts of its own.
fn own(number: u16, subject: Subject, run: fn(Subject) -> Observation) -> Vec<Once> {
    type Slot = Arc<OnceLock<Once>>;
    static SLOTS: OnceLock<Mutex<HashMap<(u16, &str), Slot>>> = OnceLock::new();
    let slot = {
        let slots = SLOTS.get_or_init(Mutex::default);
        let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry((number, subject.name())).or_default())
    };
    let once = slot.get_or_init(|| Once {
        variant: Variant {
            is_offloaded: false,
            family: Family::V4,
        },
        outcome: observe(|| run(subject)),
    });
    vec![once.clone()]
}

/// Adds that bad checksums arrived, if some did.
fn watched(site: &Site, run: impl FnOnce() -> Observation) -> Observation {
    let all = [&site.lab.client, &site.lab.host, site.lab.far()];
    let before = all.map(checksum::errors);
    let observation = run();
    let after = all.map(checksum::errors);
    if before == after {
        observation
    } else {
        observation.and("bad checksum counted")
    }
}

fn observe(run: impl FnOnce() -> Observation) -> Outcome {
    let before = DEADLINE.replace(Some(Instant::now() + LIMIT));
    let outcome = caught(run).map(|seen| Outcome::Seen(seen.to_string()));
    DEADLINE.set(before);
    outcome.unwrap_or_else(|outcome| outcome)
}

/// What a panic says, or a skip.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Outcome> {
    let before = NOTES.take();
    let result = catch_unwind(AssertUnwindSafe(run));
    let notes = NOTES.replace(before);
    result.map_err(|panic| match panic.downcast::<crate::Skip>() {
        Ok(skip) => Outcome::Skipped(skip.0),
        Err(_) => {
            note(&notes);
            let line = notes.lines().next().unwrap_or("a panic");
            Outcome::Seen(format!("failed: {line}"))
        }
    })
}
