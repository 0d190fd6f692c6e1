//! Measures the variants that work and computes figures.

use anyhow::Context as _;
use fastrand::Rng;

use crate::bench::client::Client;
use crate::bench::load::Measured;
use crate::bench::load::request::{Request, Source, Target};
use crate::bench::report::{Row, TestReport};
use crate::bench::schedule::WARM_UP;
use crate::bench::statistics::{Cost, Costs, Noise, Ratio};
use crate::bench::stop::Stop;
use crate::bench::traffic::Traffic;

/// The role of a variant in the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The variant without a redirect, which all others are compared with.
    Direct,
    /// The variant without a redirect once more.
    DirectAgain,
    /// A variant of portredir.
    Ours,
    /// The variant that those of portredir are compared with.
    Reference,
    /// Any other variant.
    Other,
}

/// A participant of a test.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name in reports.
    pub name: String,
    /// The address.
    pub target: Target,
    /// The role in the comparison.
    pub role: Role,
    /// The properties that have to be equal for a fair comparison: the number of rules,
    /// and whether connections are tracked anyway.
    pub setting: (u16, bool),
}

/// The amount of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// The number of turns of each variant.
    pub cycles: usize,
    /// The number of repetitions of the whole.
    pub repetitions: usize,
}

/// The approximate length of a turn of this traffic, in microseconds.
const fn length_us(traffic: Traffic) -> u64 {
    match traffic {
        Traffic::Rr => 2000,
        Traffic::Crr => 3000,
        Traffic::Udp | Traffic::UdpNew => 2500,
        Traffic::Upload | Traffic::Download => 10_000,
    }
}

/// The whole duration of a turn, in microseconds, for the forecast: the kernel takes some
/// milliseconds to make and to free the frames of a turn of UDP.
#[must_use]
pub const fn forecast_us(traffic: Traffic) -> u64 {
    match traffic {
        Traffic::Udp | Traffic::UdpNew => 25_000,
        _ => length_us(traffic) * 5 / 4,
    }
}

/// The client that measures, with the seeds and the signal of the run.
#[derive(Debug)]
pub struct Session<'a> {
    /// The client process.
    pub client: &'a mut Client,
    /// The source of seeds.
    pub rng: &'a mut Rng,
    /// The signal to end.
    pub stop: &'a Stop,
}

/// A test: a comparison of entries by one kind of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Test<'a> {
    /// The traffic.
    pub traffic: Traffic,
    /// The participants.
    pub entries: &'a [Entry],
    /// The amount of measurements.
    pub effort: Effort,
    /// Whether a socket sends packets of UDP.
    pub is_raw: bool,
}

impl Test<'_> {
    /// Measures; also returns how many packets each entry was sent. `before` is called
    /// before each repetition, `advance` after each cycle, with the time that was
    /// forecast.
    ///
    /// # Errors
    ///
    /// When nothing could be measured, or the benchmark is to stop.
    pub fn run(
        self,
        session: Session<'_>,
        advance: impl Fn(u64),
        mut before: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<(TestReport, Vec<u64>)> {
        let Self {
            traffic,
            entries,
            effort,
            is_raw,
        } = self;
        let Session { client, rng, stop } = session;
        let mut courses = vec![Course::default(); entries.len()];
        let mut sent = vec![0; entries.len()];
        let mut source = Source::Socket;
        for _ in 0..effort.repetitions {
            stop.check()?;
            before()?;
            let request = Request {
                traffic,
                targets: entries.iter().map(|entry| entry.target.clone()).collect(),
                length_us: length_us(traffic),
                cycles: effort.cycles,
                seed: rng.u64(..),
                is_raw,
            };
            let work_us = entries.len() as u64 * forecast_us(traffic);
            let measured = client
                .measure(&request, stop, || advance(work_us))
                .with_context(|| format!("measure: {}", traffic.title()))?;
            source = measured.source;
            sent.iter_mut()
                .zip(&measured.sent)
                .for_each(|(sum, sent)| *sum += sent);
            add(&mut courses, measured);
        }
        let noise = noise(entries, &courses);
        let report = TestReport {
            traffic,
            title: traffic.title(),
            operation: traffic.operation(),
            source,
            cycles: effort.cycles,
            repetitions: effort.repetitions,
            noise,
            rows: rows(entries, &courses),
            verdicts: verdicts(traffic, entries, &courses, noise),
        };
        Ok((report, sent))
    }
}

/// The number of cycles of a test, with those that are not counted.
#[must_use]
pub const fn cycles(effort: Effort) -> u64 {
    ((effort.cycles + WARM_UP) * effort.repetitions) as u64
}

/// The results of an entry.
#[derive(Clone, Debug, Default)]
struct Course {
    costs: Costs,
    failure: Option<String>,
}

fn add(results: &mut [Course], measured: Measured) {
    let measured = measured.costs.into_iter().zip(measured.failures);
    for (result, (costs, failure)) in results.iter_mut().zip(measured) {
        let costs = costs.into_iter();
        result
            .costs
            .push(costs.map(|cost| cost.unwrap_or(f64::NAN)).collect());
        if result.failure.is_none() {
            result.failure = failure;
        }
    }
}

fn find(entries: &[Entry], role: Role, setting: Option<(u16, bool)>) -> Option<usize> {
    entries.iter().position(|entry| {
        entry.role == role && setting.is_none_or(|setting| entry.setting == setting)
    })
}

/// The reference for an entry: in the same setting, else, where only the number of
/// rules differs and does not matter, with one rule.
fn reference(entries: &[Entry], entry: &Entry) -> Option<usize> {
    let (_, has_conntrack) = entry.setting;
    find(entries, Role::Reference, Some(entry.setting))
        .or_else(|| find(entries, Role::Reference, Some((1, has_conntrack))))
        .filter(|&found| entries[found].name != entry.name)
}

fn noise(entries: &[Entry], results: &[Course]) -> Option<Noise> {
    let is_direct = |entry: &Entry| matches!(entry.role, Role::Direct | Role::DirectAgain);
    let twins = entries
        .iter()
        .zip(results)
        .filter(|(entry, _)| is_direct(entry));
    let twins: Vec<_> = twins.map(|(_, course)| &course.costs).collect();
    Noise::of(&twins)
}

fn rows(entries: &[Entry], results: &[Course]) -> Vec<Row> {
    let direct = find(entries, Role::Direct, None).map(|direct| &results[direct].costs);
    let row = |(entry, result): (&Entry, &Course)| {
        let reference = reference(entries, entry);
        Row {
            variant: entry.name.clone(),
            is_ours: entry.role == Role::Ours,
            failure: result.failure.clone(),
            cost: Cost::of(&result.costs),
            to_direct: direct.and_then(|direct| Ratio::of(&result.costs, direct)),
            reference_to_this: reference
                .and_then(|reference| Ratio::of(&results[reference].costs, &result.costs)),
            reference: reference.map(|reference| entries[reference].name.clone()),
        }
    };
    entries.iter().zip(results).map(row).collect()
}

/// A line for each variant of portredir: the others that it beats, those that it does
/// not, and by how much.
fn verdicts(
    traffic: Traffic,
    entries: &[Entry],
    results: &[Course],
    noise: Option<Noise>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (entry, result) in entries.iter().zip(results) {
        if entry.role != Role::Ours {
            continue;
        }
        let mut compared = Vec::new();
        for (other, its) in entries.iter().zip(results) {
            let is_opponent = matches!(other.role, Role::Direct | Role::Reference | Role::Other);
            let is_fair = other.setting == entry.setting
                || (other.role == Role::Direct && entry.setting.0 > 1);
            // portredir with fewer rules stands for the comparison with itself.
            let is_fewer = other.role == Role::Ours
                && other.setting == (1, entry.setting.1)
                && entry.name.starts_with(&format!("{}, ", other.name));
            if (is_opponent && is_fair) || is_fewer {
                let ratio = Ratio::of(&its.costs, &result.costs);
                compared.extend(ratio.map(|ratio| (other.name.as_str(), ratio.median)));
            }
        }
        if !compared.is_empty() {
            let sentence = sentence(traffic.operation(), &compared, noise);
            lines.push(format!("{}: {sentence}", entry.name));
        }
    }
    lines
}

/// Writes one verdict. `compared` are the costs of others divided by those of portredir.
fn sentence(operation: &str, compared: &[(&str, f64)], noise: Option<Noise>) -> String {
    let is_difference =
        |ratio: f64| noise.is_some_and(|noise| noise.is_difference(ratio)) && ratio.is_finite();
    let list = |is_in: &dyn Fn(f64) -> bool, has_factor: bool| {
        let mut chosen: Vec<_> = compared.iter().filter(|(_, ratio)| is_in(*ratio)).collect();
        chosen.sort_by(|(_, a), (_, b)| f64::total_cmp(b, a));
        let words = chosen.iter().map(|(name, ratio)| {
            let factor = ratio.max(1.0 / ratio);
            if !has_factor {
                (*name).to_owned()
            } else if factor >= 10.0 {
                format!("{name} ({factor:.0}x)")
            } else {
                format!("{name} ({factor:.2}x)")
            }
        });
        words.collect::<Vec<_>>().join(", ")
    };
    let fewer = list(&|ratio| is_difference(ratio) && ratio > 1.0, true);
    let same = list(&|ratio| !is_difference(ratio), false);
    let more = list(&|ratio| is_difference(ratio) && ratio < 1.0, true);
    let mut parts = Vec::new();
    if !fewer.is_empty() {
        parts.push(format!("fewer ns per {operation} than {fewer}"));
    }
    if !more.is_empty() {
        parts.push(format!("more ns per {operation} than {more}"));
    }
    if !same.is_empty() {
        parts.push(format!("no difference from {same}"));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, role: Role, setting: (u16, bool)) -> Entry {
        Entry {
            name: name.to_owned(),
            target: Target {
                addr: "192.0.2.1:80".parse().expect("an address"),
                link: None,
                place: None,
            },
            role,
            setting,
        }
    }

    /// A course in which all cycles cost the same.
    fn result(cost: f64) -> Course {
        Course {
            costs: vec![vec![cost; 20]; 2],
            failure: None,
        }
    }

    #[test]
    fn like_is_compared_with_like() {
        let entries = [
            entry("direct", Role::Direct, (1, false)),
            entry("direct 2", Role::DirectAgain, (1, false)),
            entry("portredir tc", Role::Ours, (1, false)),
            entry("portredir tc, 1000 rules", Role::Ours, (1000, false)),
            entry("portredir tc, conntrack", Role::Ours, (1, true)),
            entry("iptables", Role::Reference, (1, false)),
            entry("iptables, 1000 rules", Role::Reference, (1000, false)),
            entry("iptables, conntrack", Role::Reference, (1, true)),
            entry("direct, conntrack", Role::Other, (1, true)),
            entry("nft-stateless", Role::Other, (1, false)),
            entry("nginx", Role::Other, (1, false)),
        ];
        let costs = [100, 101, 110, 111, 150, 160, 2000, 151, 140, 108, 220];
        let results = costs.map(|cost| result(cost.into()));
        let noise = noise(&entries, &results);
        assert!((noise.expect("twins").deviation - 0.01).abs() < 1e-9);
        insta::assert_snapshot!(
            verdicts(Traffic::Crr, &entries, &results, noise).join("\n"),
            @r"
        portredir tc: fewer ns per connection than nginx (2.00x), iptables (1.45x); more ns per connection than direct (1.10x); no difference from nft-stateless
        portredir tc, 1000 rules: fewer ns per connection than iptables, 1000 rules (18x); more ns per connection than direct (1.11x); no difference from portredir tc
        portredir tc, conntrack: more ns per connection than direct, conntrack (1.07x); no difference from iptables, conntrack
        "
        );
        let rows = rows(&entries, &results);
        let compared: Vec<_> = rows
            .iter()
            .map(|row| row.reference.clone().unwrap_or_default())
            .collect();
        assert_eq!(compared[3], "iptables, 1000 rules");
        assert_eq!(compared[4], "iptables, conntrack");
        assert_eq!(compared[5], "", "nothing is compared with itself");
    }

    #[test]
    fn without_a_twin_nothing_is_a_difference() {
        let compared = [("direct", 0.5)];
        assert_eq!(
            sentence("packet", &compared, None),
            "no difference from direct"
        );
    }

    #[test]
    fn what_failed_is_a_row_and_no_verdict() {
        let entries = [
            entry("direct", Role::Direct, (1, false)),
            entry("portredir tc", Role::Ours, (1, false)),
            entry("nginx", Role::Other, (1, false)),
        ];
        let failed = Course {
            costs: vec![vec![f64::NAN; 20]; 2],
            failure: Some("connect: timed out".to_owned()),
        };
        let results = [result(100.0), result(110.0), failed];
        let rows = rows(&entries, &results);
        assert_eq!(rows[2].failure.as_deref(), Some("connect: timed out"));
        assert_eq!((rows[2].cost, rows[2].to_direct), (None, None));
        let verdicts = verdicts(Traffic::Rr, &entries, &results, None);
        assert_eq!(verdicts, ["portredir tc: no difference from direct"]);
    }
}
