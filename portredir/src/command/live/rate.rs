//! Rates: two reports, and what happened between them.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::config::engine::Engine;
use crate::observe::report::{Hits, Report};

/// The number of samples that a history keeps.
pub const HISTORY: usize = 120;

/// A rule, or a rule on an interface, or an interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// The rule, in its canonical text.
    Rule(String),
    /// The rule, and the name of the interface.
    RuleOn(String, String),
    /// The name of the interface.
    Interface(String),
}

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// The packets from clients to servers.
    PacketsIn,
    /// The bytes of these packets.
    BytesIn,
    /// The packets from servers to clients.
    PacketsOut,
    /// The bytes of these packets.
    BytesOut,
    /// The connections and UDP flows that began.
    Flows,
    /// The connections that a server accepted.
    Accepted,
    /// The connections and datagrams that were refused.
    Refused,
}

impl Quantity {
    /// All quantities.
    pub const ALL: [Self; 7] = [
        Self::PacketsIn,
        Self::BytesIn,
        Self::PacketsOut,
        Self::BytesOut,
        Self::Flows,
        Self::Accepted,
        Self::Refused,
    ];
}

/// A value for each quantity; none where it is not counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Values<T>([Option<T>; Quantity::ALL.len()]);

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| None))
    }
}

impl<T: Copy + std::ops::Add<Output = T>> Values<T> {
    /// The value of a quantity.
    #[must_use]
    pub fn get(&self, quantity: Quantity) -> Option<T> {
        self.0[quantity as usize]
    }

    /// Adds other values to these.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = match (*sum, more) {
                (Some(sum), Some(more)) => Some(sum + more),
                (sum, more) => sum.or(more),
            };
        }
    }
}

/// One line of numbers.
#[derive(Clone, Debug)]
pub struct Row {
    /// The subject.
    pub name: Name,
    /// The counters.
    pub counts: Values<u64>,
    /// The increase in a second; none for the first report, and after a restart.
    pub rates: Values<f64>,
}

impl Row {
    /// The rule or the interface.
    #[must_use]
    pub fn text(&self) -> &str {
        match &self.name {
            Name::Rule(name) | Name::RuleOn(_, name) | Name::Interface(name) => name,
        }
    }

    /// Whether the row has all packets of a rule.
    #[must_use]
    pub const fn is_total(&self) -> bool {
        matches!(self.name, Name::Rule(_))
    }

    /// The rate that the history shows: packets in and out, or flows where no packets are counted.
    fn activity(&self) -> Option<f64> {
        let mut packets = self.rates.get(Quantity::PacketsIn);
        if let (Some(packets), Some(replies)) = (&mut packets, self.rates.get(Quantity::PacketsOut))
        {
            *packets += replies;
        }
        packets.or_else(|| self.rates.get(Quantity::Flows))
    }
}

/// The redirect that reports: another one counts anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The beginning of the redirect, where it is known.
    pub since: Option<String>,
    /// The process, where it counts for itself alone.
    pub pid: Option<u32>,
}

/// The last report, and the rates before it.
#[derive(Debug, Default)]
pub struct Meter {
    before: Option<(Identity, Report)>,
    histories: HashMap<Name, VecDeque<f64>>,
    /// The dropped packets in a second, by reason.
    drops: HashMap<String, f64>,
}

impl Meter {
    /// Takes a report, and returns a row for each rule, each rule on each interface and
    /// each interface, in the order of the report.
    pub fn take(&mut self, identity: Identity, report: Report) -> Vec<Row> {
        let last = self.before.take();
        let last = last.filter(|(before, _)| *before == identity);
        if last.is_none() {
            self.histories.clear();
        }
        let before = last.as_ref().map(|(_, report)| report);
        let seconds = before.map(|before| report.time.duration_since(before.time).as_secs_f64());
        self.drops = drop_rates(before, &report, seconds);
        let old: HashMap<_, _> = before.map(counts).into_iter().flatten().collect();
        let rows = counts(&report).into_iter().map(|(name, counts)| Row {
            rates: seconds.map_or_else(Values::default, |seconds| {
                rates(old.get(&name), &counts, seconds)
            }),
            name,
            counts,
        });
        let rows: Vec<_> = rows.collect();
        self.remember(&rows);
        self.before = Some((identity, report));
        rows
    }

    fn remember(&mut self, rows: &[Row]) {
        for row in rows {
            let Some(activity) = row.activity() else {
                continue;
            };
            let history = self.histories.entry(row.name.clone()).or_default();
            history.push_back(activity);
            let surplus = history.len().saturating_sub(HISTORY);
            history.drain(..surplus);
        }
        if self.histories.len() > rows.len() {
            let names: HashSet<_> = rows.iter().map(|row| &row.name).collect();
            self.histories.retain(|name, _| names.contains(name));
        }
    }

    /// The packet rates of a row, the newest last.
    pub fn history(&self, name: &Name) -> impl DoubleEndedIterator<Item = f64> {
        self.histories.get(name).into_iter().flatten().copied()
    }

    /// The packets in a second that are dropped for a reason.
    #[must_use]
    pub fn drop_rate(&self, reason: &str) -> Option<f64> {
        self.drops.get(reason).copied()
    }

    /// The newest report.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        self.before.as_ref().map(|(_, report)| report)
    }
}

/// The counters of each rule and of the rule on each interface, then of each interface.
fn counts(report: &Report) -> Vec<(Name, Values<u64>)> {
    let interfaces = report.interfaces.iter().map(|interface| &interface.report);
    let mut interfaces: Vec<_> = interfaces
        .map(|report| (report.name.as_str(), idle(&report.engine)))
        .collect();
    let mut all = Vec::new();
    for rule in &report.rules {
        let outcomes = &rule.outcomes;
        let total = of_hits(&rule.total, [outcomes.accepted, outcomes.refused]);
        all.push((Name::Rule(rule.rule.clone()), total));
        for (name, hits) in &rule.interfaces {
            let counts = of_hits(hits, [None; 2]);
            all.push((Name::RuleOn(rule.rule.clone(), name.clone()), counts));
            match interfaces.iter_mut().find(|(other, _)| other == name) {
                Some((_, sum)) => sum.add(&counts),
                None => interfaces.push((name, counts)),
            }
        }
    }
    let interfaces = interfaces.into_iter();
    all.extend(interfaces.map(|(name, counts)| (Name::Interface(name.to_owned()), counts)));
    all
}

/// The counts of an interface without traffic. Where connections are given to sockets no
/// packets are counted.
fn idle(engine: &str) -> Values<u64> {
    let zero = Engine::sees_packets(engine).then_some(0);
    let hits = Hits {
        packets: zero,
        bytes: zero,
        packets_out: zero,
        bytes_out: zero,
        ..Hits::default()
    };
    of_hits(&hits, [None; 2])
}

fn of_hits(hits: &Hits, [accepted, refused]: [Option<u64>; 2]) -> Values<u64> {
    Values(Quantity::ALL.map(|quantity| match quantity {
        Quantity::PacketsIn => hits.packets,
        Quantity::BytesIn => hits.bytes,
        Quantity::PacketsOut => hits.packets_out,
        Quantity::BytesOut => hits.bytes_out,
        Quantity::Flows => Some(hits.flows),
        Quantity::Accepted => accepted,
        Quantity::Refused => refused,
    }))
}

fn drop_rates(
    before: Option<&Report>,
    report: &Report,
    seconds: Option<f64>,
) -> HashMap<String, f64> {
    let rate = |(reason, count): (&String, &u64)| {
        let old = before?.drops.get(reason).copied().unwrap_or_default();
        Some((reason.clone(), rate(old, *count, seconds?)?))
    };
    report.drops.iter().filter_map(rate).collect()
}

/// The rates between two counts. A rule that is new had none before.
fn rates(before: Option<&Values<u64>>, after: &Values<u64>, seconds: f64) -> Values<f64> {
    Values(Quantity::ALL.map(|quantity| {
        let before = before.and_then(|before| before.get(quantity));
        rate(before.unwrap_or_default(), after.get(quantity)?, seconds)
    }))
}

/// The increase in a second; none when the later count is smaller, or no time has passed.
fn rate(before: u64, after: u64, seconds: f64) -> Option<f64> {
    let more = after.checked_sub(before)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "rates are shown with three digits"
    )]
    let more = more as f64;
    (seconds > 0.0).then_some(more / seconds)
}
