//! Metrics in the text format of Prometheus, version 0.0.4.
//!
//! The number of series depends on rules and interfaces, and on nothing that a client can
//! choose. `status --json` has the counts of each rule on each interface.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
    NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use super::attached::HookState;
use super::report::{Hits, Report, RuleOutcomes, RuleReport};
use crate::loader::flows::Fill;

pub use prometheus_text::CONTENT_TYPE;

/// The work of the process that keeps a redirect in step with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reconciled {
    /// The number of times that the process brought attached programs in step with the host.
    pub runs: u64,
    /// The number of times that it failed.
    pub errors: u64,
    /// The time that all runs took.
    pub duration_seconds: f64,
    /// The last time that it succeeded.
    pub last: Option<Timestamp>,
}

impl Reconciled {
    /// Adds a run that took so long.
    pub fn add(&mut self, duration: Duration, succeeded: Option<Timestamp>) {
        self.runs += 1;
        self.errors += u64::from(succeeded.is_none());
        self.duration_seconds += duration.as_secs_f64();
        self.last = succeeded.or(self.last);
    }
}

/// A redirect that runs, as far as metrics tell it.
#[derive(Clone, Debug)]
pub struct Running {
    /// Whether a process keeps the redirect in step with its host.
    pub is_watched: bool,
    /// The beginning of the redirect.
    pub since: Option<Timestamp>,
    /// The last change.
    pub changed: Option<Timestamp>,
    /// Interfaces and counters.
    pub report: Report,
    /// The fill of the flow tables. An older process does not tell.
    pub flow_tables: Vec<Fill>,
    /// The work of the process, if there is one that tells.
    pub reconciled: Option<Reconciled>,
}

/// The metrics at one moment.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The version of the process that redirects, or else of this one.
    pub version: String,
    /// The redirect, if one runs.
    pub running: Option<Running>,
}

/// A series of counters of a rule or of an interface: the end of its name, its help, and
/// the value of each direction.
struct Counts {
    name: &'static str,
    help: &'static str,
    /// Values by direction; a series without directions has one with no name. A value that
    /// is not counted is no series.
    values: &'static [(Option<&'static str>, Read)],
}

/// Reads a count.
type Read = fn(&Hits) -> Option<u64>;

/// From clients to servers.
const IN: Option<&str> = Some("in");

/// From servers to clients.
const OUT: Option<&str> = Some("out");

/// The counters of rules and of interfaces.
const COUNTS: [Counts; 3] = [
    Counts {
        name: "packets",
        help: "Packets of redirected flows; in is from clients to servers, out are the replies.",
        values: &[(IN, |hits| hits.packets), (OUT, |hits| hits.packets_out)],
    },
    Counts {
        name: "bytes",
        help: "Bytes of these packets, with all headers.",
        values: &[(IN, |hits| hits.bytes), (OUT, |hits| hits.bytes_out)],
    },
    Counts {
        name: "flows",
        help: "Redirected flows that began.",
        values: &[(None, |hits| Some(hits.flows))],
    },
];

impl Metrics {
    /// The text for a scrape.
    #[must_use]
    pub fn text(self) -> String {
        let mut registry = Registry::with_prefix("portredir");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).expect("a string takes any text");
        text
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Out(encoder);
        let mut info = out.family("build", "The version.", MetricType::Info)?;
        info.encode_info(&[("version", self.version.as_str())])?;
        out.gauge(
            "running",
            "Whether a redirect is active: 1, or 0.",
            u32::from(self.running.is_some()),
        )?;
        let Some(running) = &self.running else {
            return Ok(());
        };
        running.encode_state(&mut out)?;
        running.encode_rules(&mut out)?;
        running.encode_interfaces(&mut out)?;
        running.encode_reasons(&mut out)?;
        running.encode_tables(&mut out)?;
        running.encode_work(&mut out)
    }
}

impl Running {
    fn encode_state(&self, out: &mut Out<'_>) -> Result<(), Error> {
        out.gauge(
            "watched",
            "Whether a process tracks interfaces and addresses: 1, or 0.",
            u32::from(self.is_watched),
        )?;
        let times = [
            (
                "start_time_seconds",
                "The beginning of the redirect, in Unix time.",
                self.since,
            ),
            (
                "change_time_seconds",
                "The last change of rules or options, in Unix time.",
                self.changed,
            ),
        ];
        for (name, help, time) in times {
            if let Some(time) = time {
                out.gauge(name, help, unix(time))?;
            }
        }
        let rules = self.report.rules.len();
        out.gauge("rules", "Active rules.", rules)
    }

    fn encode_rules(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let rules = &self.report.rules;
        let totals: Vec<_> = rules
            .iter()
            .map(|rule| (rule.rule.as_str(), &rule.total))
            .collect();
        out.counts("rule", &totals)?;
        out.outcomes(rules)?;
        let mut last = out.family(
            "rule_last_packet_time_seconds",
            "The last packet of a client, in Unix time.",
            MetricType::Gauge,
        )?;
        for rule in rules {
            if let Some(time) = rule.total.last_hit {
                last.encode_family(&[("rule", rule.rule.as_str())])?
                    .encode_gauge(&unix(time))?;
            }
        }
        Ok(())
    }

    fn encode_interfaces(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let mut totals = BTreeMap::<_, Hits>::new();
        for interface in &self.report.interfaces {
            totals.entry(interface.report.name.as_str()).or_default();
        }
        for rule in &self.report.rules {
            for (name, hits) in &rule.interfaces {
                add(totals.entry(name.as_str()).or_default(), hits);
            }
        }
        let totals: Vec<_> = totals.iter().map(|(name, hits)| (*name, hits)).collect();
        out.counts("interface", &totals)?;
        // A name may be there twice for a moment, after an interface was renamed.
        let mut attached = BTreeMap::new();
        for interface in &self.report.interfaces {
            let Some(state) = interface.state.filter(|state| *state != HookState::Unknown) else {
                continue;
            };
            let report = &interface.report;
            let labels = (
                report.name.as_str(),
                report.engine.as_str(),
                report.mode.as_str(),
            );
            let is_attached = attached.entry(labels).or_insert(true);
            *is_attached &= !state.is_fault();
        }
        let mut family = out.family(
            "attached",
            "Whether the kernel says that all programs of an interface are attached: 1, or 0.",
            MetricType::Gauge,
        )?;
        for ((name, engine, mode), is_attached) in attached {
            family
                .encode_family(&[("interface", name), ("engine", engine), ("mode", mode)])?
                .encode_gauge(&u32::from(is_attached))?;
        }
        Ok(())
    }

    fn encode_reasons(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let families = [
            (
                "drops",
                "Packets that reached no server, by reason.",
                &self.report.drops,
            ),
            (
                "passes",
                "Packets that were not redirected, by reason.",
                &self.report.passes,
            ),
        ];
        for (name, help, counts) in families {
            let mut family = out.family(name, help, MetricType::Counter)?;
            for (reason, count) in counts {
                count_one(&mut family, &[("reason", reason.as_str())], count)?;
            }
        }
        Ok(())
    }

    fn encode_tables(&self, out: &mut Out<'_>) -> Result<(), Error> {
        type Size = fn(&Fill) -> u64;
        let sizes: [(_, _, Size); 4] = [
            (
                "map_entries",
                "Flows that would be lost if they were evicted.",
                |fill| fill.entries,
            ),
            (
                "map_capacity",
                "Flows that the table is made for.",
                |fill| fill.capacity,
            ),
            ("map_buckets", "Buckets of the table.", |fill| fill.buckets),
            (
                "map_full_buckets",
                "Buckets where a new flow evicts another one.",
                |fill| fill.full_buckets,
            ),
        ];
        for (name, help, size) in sizes {
            if self.flow_tables.is_empty() {
                continue;
            }
            let mut family = out.family(name, help, MetricType::Gauge)?;
            for fill in &self.flow_tables {
                let map = format!("{}_flows", fill.table);
                family
                    .encode_family(&[("map", map)])?
                    .encode_gauge(&size(fill))?;
            }
        }
        Ok(())
    }

    fn encode_work(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let Some(work) = &self.reconciled else {
            return Ok(());
        };
        out.counter(
            "reconciles",
            "Times that the process brought programs in step with the host.",
            &work.runs,
        )?;
        out.counter("reconcile_errors", "Times that this failed.", &work.errors)?;
        out.counter(
            "reconcile_duration_seconds",
            "The time that this took.",
            &work.duration_seconds,
        )?;
        match work.last {
            Some(last) => out.gauge(
                "sync_last_timestamp_seconds",
                "The last time that programs were in step with the host, in Unix time.",
                unix(last),
            ),
            None => Ok(()),
        }
    }
}

/// The receiver of metrics.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Result<(), Error> {
        self.family(name, help, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        value: &impl EncodeCounterValue,
    ) -> Result<(), Error> {
        self.family(name, help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(value, None)
    }

    /// The answers to connections, of each rule where they are known.
    fn outcomes(&mut self, rules: &[RuleReport]) -> Result<(), Error> {
        type Outcome = fn(&RuleOutcomes) -> Option<u64>;
        const OUTCOMES: [(&str, Outcome); 2] = [
            ("accepted", |outcomes| outcomes.accepted),
            ("refused", |outcomes| outcomes.refused),
        ];
        let mut family = self.family(
            "rule_connections",
            "Connections that a server accepted, and flows that were refused.",
            MetricType::Counter,
        )?;
        for rule in rules {
            for (outcome, value) in OUTCOMES {
                if let Some(count) = value(&rule.outcomes) {
                    let labels = [("rule", rule.rule.as_str()), ("outcome", outcome)];
                    count_one(&mut family, &labels, &count)?;
                }
            }
        }
        Ok(())
    }

    /// The counters of all rules, or of all interfaces.
    fn counts(&mut self, subject: &str, totals: &[(&str, &Hits)]) -> Result<(), Error> {
        for Counts { name, help, values } in &COUNTS {
            let name = format!("{subject}_{name}");
            let mut family = self.family(&name, help, MetricType::Counter)?;
            for (label, hits) in totals {
                for (direction, value) in *values {
                    let Some(count) = value(hits) else {
                        continue;
                    };
                    let mut labels = vec![(subject, *label)];
                    labels.extend(direction.map(|direction| ("direction", direction)));
                    count_one(&mut family, &labels, &count)?;
                }
            }
        }
        Ok(())
    }
}

/// Adds the counts of a rule to those of an interface. A count is unknown where all of them
/// are.
fn add(sum: &mut Hits, hits: &Hits) {
    let both = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0) + b.unwrap_or(0)),
    };
    sum.packets = both(sum.packets, hits.packets);
    sum.bytes = both(sum.bytes, hits.bytes);
    sum.packets_out = both(sum.packets_out, hits.packets_out);
    sum.bytes_out = both(sum.bytes_out, hits.bytes_out);
    sum.flows += hits.flows;
}

fn count_one(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    count: &u64,
) -> Result<(), Error> {
    family
        .encode_family(labels)?
        .encode_counter::<NoLabelSet, _, u64>(count, None)
}

/// Seconds since 1970.
fn unix(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests;
