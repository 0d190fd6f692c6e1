//! All observations, kept for the tests and for the document.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::case::{Case, Run};
use super::site::Site;
use super::subject::{SUBJECTS, Subject, VARIANTS, Variant};
use super::{DOCUMENT_TEST, cases, test_name};
use crate::conformance::FAILED;
use crate::conformance::outcome::{LIMIT, Outcome, caught, observe, tell_time, watched};
use crate::lab::Family;
use crate::lab::process::{DEADLINE, PATIENCE};

/// The outcome of one run.
#[derive(Clone, Debug)]
struct Once {
    variant: Variant,
    family: Family,
    outcome: Outcome,
}

/// The name of a case and that of a subject.
type Key = (&'static str, &'static str);

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
    let is_for_all = DOCUMENT_TEST.contains(filter.as_str());
    let is_for_oracle = is_oracle && "forward/oracle".contains(filter.as_str());
    is_for_all
        || is_for_oracle
        || is_named(subject)
        || (is_oracle && SUBJECTS.into_iter().any(is_named))
}

/// The outcome of a case with a subject. The first call runs all cases.
pub fn cell(case: &'static Case, subject: Subject) -> Outcome {
    static RESULTS: OnceLock<Results> = OnceLock::new();
    let all = &RESULTS.get_or_init(run_all)[&(case.name, subject.name())];
    let mut skipped = all.iter().map(|once| &once.outcome);
    match skipped.find(|outcome| matches!(outcome, Outcome::Skipped(_))) {
        Some(skipped) => skipped.clone(),
        None => Outcome::Seen(summary(all)),
    }
}

/// One text, where it was the same each time.
fn summary(all: &[Once]) -> String {
    let text = |once: &Once| match &once.outcome {
        Outcome::Seen(text) | Outcome::Skipped(text) => text.clone(),
    };
    let is_same = |among: &[&Once]| among.iter().all(|once| once.outcome == among[0].outcome);
    let of = |family| -> Vec<_> { all.iter().filter(|once| once.family == family).collect() };
    let (v4, v6) = (of(Family::V4), of(Family::V6));
    if is_same(&all.iter().collect::<Vec<_>>()) {
        text(&all[0])
    } else if is_same(&v4) && is_same(&v6) {
        format!("IPv4: {}. IPv6: {}", text(v4[0]), text(v6[0]))
    } else {
        let each = all
            .iter()
            .map(|once| format!("{}: {}", once.variant.words(once.family), text(once)));
        each.collect::<Vec<_>>().join(". ")
    }
}

/// The number of jobs that run at a time. A job waits more than it computes.
const WORKERS: usize = 4;

/// Something to run.
#[derive(Clone, Copy)]
enum Job {
    /// All cases that share hosts.
    Shared(Subject, Variant),
    /// One that has hosts of its own.
    Own(&'static Case, Subject, Family),
}

fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for subject in SUBJECTS {
        jobs.extend(VARIANTS.map(|variant| Job::Shared(subject, variant)));
        let is_tried = |case: &&Case| is_wanted(case, subject);
        for case in cases().filter(is_tried) {
            if let Run::Own(..) = case.run {
                let families = case.families.iter();
                jobs.extend(families.map(|&family| Job::Own(case, subject, family)));
            }
        }
    }
    jobs
}

fn run_all() -> Results {
    let jobs = jobs();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Results::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                PATIENCE.set(LIMIT / 2);
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = match *job {
                        Job::Shared(subject, variant) => run_shared(subject, variant),
                        Job::Own(case, subject, family) => run_own(case, subject, family),
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
            let variant = VARIANTS.iter().position(|variant| *variant == once.variant);
            (variant, once.family == Family::V6)
        });
    }
    results
}

fn run_shared(subject: Subject, variant: Variant) -> Vec<(Key, Once)> {
    let is_ours = |case: &&Case| matches!(case.run, Run::Shared(_)) && is_wanted(case, subject);
    let wanted: Vec<_> = cases().filter(is_ours).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    DEADLINE.set(Some(Instant::now() + LIMIT));
    let site = caught(|| {
        let mut site = Site::idle(subject, variant);
        site.start();
        site
    });
    let mut results = Vec::new();
    for case in wanted {
        let Run::Shared(run) = case.run else { continue };
        for &family in case.families {
            let start = Instant::now();
            let outcome = match &site {
                Ok(site) => observe(|| {
                    let all = [&site.lab.client, &site.lab.host, &site.f, &site.g, &site.o];
                    watched(all, || run(site, family))
                }),
                Err(outcome) => outcome.clone(),
            };
            tell_time(subject, case.name, start);
            results.push((
                (case.name, subject.name()),
                Once {
                    variant,
                    family,
                    outcome,
                },
            ));
        }
    }
    DEADLINE.set(Some(Instant::now() + LIMIT));
    if let Err(Outcome::Seen(text)) = caught(|| site.map(|mut site| site.finish())) {
        // The failure belongs to no single case, so all of them fail.
        for (_, once) in &mut results {
            once.outcome = Outcome::Seen(format!("{FAILED}the end: {text}"));
        }
    }
    results
}

fn run_own(case: &'static Case, subject: Subject, family: Family) -> Vec<(Key, Once)> {
    let Run::Own(_, run) = case.run else {
        return Vec::new();
    };
    let start = Instant::now();
    let once = case.variants().into_iter().map(|variant| {
        let outcome = observe(|| {
            let mut site = Site::idle(subject, variant);
            let seen = run(&mut site, family);
            site.finish();
            seen
        });
        let once = Once {
            variant,
            family,
            outcome,
        };
        ((case.name, subject.name()), once)
    });
    let all = once.collect();
    tell_time(subject, case.name, start);
    all
}
