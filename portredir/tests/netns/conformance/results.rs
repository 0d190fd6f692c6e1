//! All observations, kept for the tests and for the document.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::case::{Case, Run};
use super::observe::Observation;
use super::outcome::{LIMIT, Outcome, caught, has_times, observe, tell_time, watched};
use super::site::{Offload, SUBJECTS, Site, Subject};
use super::{DOCUMENT_TEST, FAILED, cases, test_name};
use crate::lab::Family;
use crate::lab::process::{DEADLINE, PATIENCE};

/// The outcome of a case with one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// In words.
    Seen(String),
    /// The kernel cannot do it.
    Skipped(String),
    /// The case does not apply to the subject.
    NotTried,
}

/// The outcome of one run.
#[derive(Clone, Debug)]
struct Once {
    variant: Variant,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    offload: Offload,
    family: Family,
}

/// A case's number and a subject's name.
type Key = (u16, &'static str);

type Results = HashMap<Key, Vec<Once>>;

/// The tests that were asked for by name; others need not be run.
static FILTER: OnceLock<String> = OnceLock::new();

/// Runs nothing that is only needed by tests whose names do not contain this.
pub fn limit_to(filter: &str) {
    FILTER.get_or_init(|| filter.to_owned());
}

fn is_wanted(case: &Case, subject: Subject) -> bool {
    let Some(filter) = FILTER.get() else {
        return true;
    };
    let is_named = |subject: Subject| test_name(case, subject).contains(filter);
    let is_oracle = subject == Subject::Nft;
    DOCUMENT_TEST.contains(filter.as_str())
        || is_named(subject)
        || (is_oracle && case.subjects().any(is_named))
}

/// The outcome of a case with a subject. The first call runs all cases.
pub fn cell(case: &'static Case, subject: Subject) -> Cell {
    static RESULTS: OnceLock<Results> = OnceLock::new();
    if case.families(subject).is_empty() {
        return Cell::NotTried;
    }
    let all = &RESULTS.get_or_init(run_all)[&(case.number, subject.name())];
    let skipped = all.iter().find_map(|once| match &once.outcome {
        Outcome::Skipped(reason) => Some(reason.clone()),
        Outcome::Seen(_) => None,
    });
    match skipped {
        Some(reason) => Cell::Skipped(reason),
        None => Cell::Seen(summary(all)),
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
            let offload = match once.variant.offload {
                Offload::On => "on",
                Offload::Off => "off",
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

/// The number of jobs that run at a time. A job waits for the kernel and for
/// replies more than it computes.
const WORKERS: usize = 4;

/// Something to run.
#[derive(Clone, Copy)]
enum Job {
    /// All cases that share hosts, with checksum offload or without.
    Shared(Subject, Offload),
    /// One that has hosts of its own.
    Own(&'static Case, Subject, fn(Subject) -> Observation),
}

fn run_all() -> Results {
    let mut jobs = Vec::new();
    for subject in SUBJECTS {
        jobs.push(Job::Shared(subject, Offload::Off));
        // The two last attach the same datapath in another way.
        if !matches!(subject, Subject::Engine("xdp-generic" | "tc-clsact")) {
            jobs.push(Job::Shared(subject, Offload::On));
        }
    }
    for case in cases() {
        let Run::Own(run) = case.run else { continue };
        for subject in case.subjects().filter(|subject| is_wanted(case, *subject)) {
            jobs.push(Job::Own(case, subject, run));
        }
    }
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Results::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                PATIENCE.set(LIMIT / 2);
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = match *job {
                        Job::Shared(subject, offload) => run_shared(subject, offload),
                        Job::Own(case, subject, run) => vec![run_own(case, subject, run)],
                    };
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    for (key, once) in done {
                        results.entry(key).or_default().push(once);
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    for all in results.values_mut() {
        all.sort_by_key(|once| {
            (
                once.variant.offload == Offload::Off,
                once.variant.family == Family::V6,
            )
        });
    }
    results
}

fn run_shared(subject: Subject, offload: Offload) -> Vec<(Key, Once)> {
    let is_ours = |case: &&Case| {
        matches!(case.run, Run::Shared(_))
            && !case.families(subject).is_empty()
            && is_wanted(case, subject)
    };
    let wanted: Vec<_> = cases().filter(is_ours).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let start = Instant::now();
    DEADLINE.set(Some(start + LIMIT));
    let site = caught(|| Site::new(subject, offload));
    let mut results = Vec::new();
    let mut times = Vec::new();
    let begun = start.elapsed();
    for case in wanted {
        let Run::Shared(run) = case.run else { continue };
        for &family in case.families(subject) {
            let start = Instant::now();
            let outcome = match &site {
                Ok(site) => observe(|| {
                    let all = [&site.lab.client, &site.lab.host, site.lab.far()];
                    watched(all, || run(site, family))
                }),
                Err(outcome) => outcome.clone(),
            };
            let variant = Variant { offload, family };
            results.push(((case.number, subject.name()), Once { variant, outcome }));
            times.push((start.elapsed(), case.name, family));
        }
    }
    DEADLINE.set(Some(Instant::now() + LIMIT));
    let end = caught(|| site.map(|mut site| site.finish()));
    if let Err(Outcome::Seen(text)) = end {
        // The failure belongs to no single case, so all of them fail.
        for (_, once) in &mut results {
            once.outcome = Outcome::Seen(format!("{FAILED}the end: {text}"));
        }
    }
    if has_times() {
        times.sort_by_key(|(time, ..)| *time);
        let slowest: Vec<_> = times.iter().rev().take(12).collect();
        let all = start.elapsed();
        eprintln!(
            "{subject:?}, offload {offload:?}: {all:?}, begun after {begun:?}, slowest {slowest:?}"
        );
    }
    results
}

fn run_own(case: &Case, subject: Subject, run: fn(Subject) -> Observation) -> (Key, Once) {
    let start = Instant::now();
    let variant = Variant {
        offload: Offload::Off,
        family: Family::V4,
    };
    let outcome = observe(|| run(subject));
    tell_time(subject, case.name, start);
    ((case.number, subject.name()), Once { variant, outcome })
}
