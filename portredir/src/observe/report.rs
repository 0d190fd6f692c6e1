//! Counters in a form for people and programs.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::{Timestamp, Unit};
use nix::net::if_::if_indextoname;
use nix::time::{ClockId, clock_gettime};
use portredir_common::map::counters::{Counter, CounterKey};
use portredir_common::verdict::Reason;
use serde::{Deserialize, Serialize};

use super::attached::Interface;
use crate::rule::Rule;

/// The version of the layout; raised when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// All counters at one moment: the object that `--json` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The version of this layout.
    pub schema: u32,
    /// The time when the counters were read.
    pub time: Timestamp,
    /// The rules in the order in which they were given.
    pub rules: Vec<RuleReport>,
    /// The interfaces that are attached.
    pub interfaces: Vec<Interface>,
    /// The dropped packets, by reason.
    pub drops: BTreeMap<String, u64>,
    /// The passed packets, by reason; redirected ones count at their rule.
    pub passes: BTreeMap<String, u64>,
}

/// The counters of one rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleReport {
    /// The canonical text of the rule.
    pub rule: String,
    /// The counts on all interfaces.
    #[serde(flatten)]
    pub total: Hits,
    /// The counts by interface.
    pub interfaces: BTreeMap<String, Hits>,
}

/// The packets that a rule redirected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// The packets from client to server.
    pub packets: u64,
    /// The bytes of these packets, with all headers.
    pub bytes: u64,
    /// The number of flows that began.
    pub flows: u64,
    /// The time of the last packet.
    pub last_hit: Option<Timestamp>,
}

impl Report {
    /// Makes a report; each rule comes with the number of its counters.
    #[must_use]
    pub fn new(
        rules: &[(u16, Rule)],
        interfaces: Vec<Interface>,
        counters: &[(CounterKey, Counter)],
        reasons: &[u64],
    ) -> Self {
        let clock = Clock::now();
        let mut reports: Vec<_> = rules
            .iter()
            .map(|(_, rule)| RuleReport {
                rule: rule.to_string(),
                total: Hits::default(),
                interfaces: BTreeMap::new(),
            })
            .collect();
        let places: HashMap<_, _> = rules
            .iter()
            .map(|(id, _)| u32::from(*id))
            .zip(0..)
            .collect();
        for (key, counter) in counters {
            let Some(report) = places
                .get(&key.rule)
                .and_then(|&i: &usize| reports.get_mut(i))
            else {
                // The rule is gone, but it still has flows.
                continue;
            };
            let hits = Hits {
                packets: counter.packets,
                bytes: counter.bytes,
                flows: counter.flows,
                last_hit: clock.wall(counter.last_hit_ns),
            };
            report.total.add(&hits);
            let by_name = report.interfaces.entry(name_of(key.ifindex, &interfaces));
            by_name.or_default().add(&hits);
        }
        let counts = Reason::ALL.iter().zip(reasons);
        let (drops, passes) = counts
            .filter(|(reason, _)| reason.is_counted())
            .map(|(reason, count)| (reason, (reason.label().to_owned(), *count)))
            .partition::<Vec<_>, _>(|(reason, _)| reason.is_refusal());
        let by_label = |counts: Vec<(_, _)>| counts.into_iter().map(|(_, count)| count).collect();
        Self {
            schema: SCHEMA,
            time: clock.time,
            rules: reports,
            interfaces,
            drops: by_label(drops),
            passes: by_label(passes),
        }
    }

    /// The width of the column of rules. Only a rule that is very long is longer.
    fn width(&self) -> usize {
        let widths = self.rules.iter().map(|rule| rule.rule.len());
        widths.max().unwrap_or_default().clamp(17, 60)
    }

    /// A line for every rule that has redirected a packet since `before`.
    #[must_use]
    pub fn changes(&self, before: Option<&Self>) -> Vec<String> {
        self.rules
            .iter()
            .enumerate()
            .filter_map(|(i, rule)| {
                // Rules that were changed meanwhile begin anew.
                let old = before.and_then(|before| before.rules.get(i));
                let old = old.filter(|old| old.rule == rule.rule);
                let old = old.map_or(Hits::default(), |old| old.total);
                let packets = rule.total.packets - old.packets;
                let flows = rule.total.flows - old.flows;
                // An engine that rewrites no packets counts none.
                let news = match (packets, flows) {
                    (0, 0) => return None,
                    (0, _) => format!("+{}", counted(flows, "flow")),
                    _ => format!("+{}", counted(packets, "packet")),
                };
                Some(format!("{} ({news})", rule.line(self.width())))
            })
            .collect()
    }

    /// The final summary.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for rule in &self.rules {
            lines.push(rule.line(self.width()));
            for (name, hits) in &rule.interfaces {
                lines.push(format!("  {name:<0$} {hits}", self.width() - 2));
            }
        }
        for (verdict, counts) in [("dropped", &self.drops), ("passed", &self.passes)] {
            let counts: Vec<_> = counts
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(reason, count)| format!("{reason} {count}"))
                .collect();
            if !counts.is_empty() {
                lines.push(format!("{verdict}: {}", counts.join(", ")));
            }
        }
        lines
    }
}

impl RuleReport {
    fn line(&self, width: usize) -> String {
        format!("{:<width$} {}", self.rule, self.total)
    }
}

impl Hits {
    fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.flows += other.flows;
        self.last_hit = self.last_hit.max(other.last_hit);
    }
}

impl std::fmt::Display for Hits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} in, {} in, {}",
            counted(self.packets, "packet"),
            counted(self.bytes, "byte"),
            counted(self.flows, "flow")
        )
    }
}

/// A number and its noun: `1 rule`, `2 rules`.
#[must_use]
pub fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// The name of an interface: the one that it was attached by, else the present one.
fn name_of(index: u32, attached: &[Interface]) -> String {
    let attached = attached.iter().map(|interface| &interface.report);
    if let Some(report) = attached.into_iter().find(|report| report.ifindex == index) {
        return report.name.clone();
    }
    match (index != CounterKey::UNKNOWN_IFINDEX).then(|| if_indextoname(index)) {
        None => "elsewhere".to_owned(),
        Some(Ok(name)) => name.to_string_lossy().into_owned(),
        Some(Err(_)) => format!("if{index}"),
    }
}

/// Both clocks at one moment: the kernel counts by the monotonic one.
struct Clock {
    time: Timestamp,
    monotonic: Duration,
}

impl Clock {
    fn now() -> Self {
        let monotonic =
            clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        Self {
            time: Timestamp::now(),
            monotonic,
        }
    }

    fn wall(&self, monotonic_ns: u64) -> Option<Timestamp> {
        let ago = self
            .monotonic
            .saturating_sub(Duration::from_nanos(monotonic_ns));
        // The two clocks are not read at the very same time: a small difference is noise.
        let time = self.time - ago;
        (monotonic_ns != 0).then(|| time.round(Unit::Millisecond).unwrap_or(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::attachment::InterfaceReport;

    fn report(packets: u64) -> Report {
        let rules = ["80:8080", "53:5353/udp"].map(|r| r.parse().expect("a rule"));
        let [first, second] = rules;
        let rules = [(7, first), (3, second)];
        let hit = |ifindex, rule, packets| {
            let counter = Counter {
                packets,
                bytes: packets * 100,
                flows: 1,
                last_hit_ns: 5,
            };
            (CounterKey { ifindex, rule }, counter)
        };
        let eth0 = InterfaceReport {
            name: "eth0".to_owned(),
            ifindex: 2,
            engine: "tc".to_owned(),
            mode: "tcx".to_owned(),
            why: String::new(),
        };
        let mut reasons = vec![0; Reason::COUNT];
        reasons[Reason::Restored as usize] = 4;
        reasons[Reason::NoFreePort as usize] = 1;
        Report::new(
            &rules,
            vec![Interface::new(eth0, Vec::new())],
            &[
                hit(2, 7, packets),
                hit(CounterKey::UNKNOWN_IFINDEX, 7, 1),
                hit(2, 1, 9),
            ],
            &reasons,
        )
    }

    #[test]
    fn sums_over_interfaces_and_keeps_the_split() {
        let report = report(3);
        assert_eq!(report.rules[0].total.packets, 4);
        assert_eq!(report.rules[0].total.bytes, 400);
        assert!(report.rules[0].total.last_hit.is_some());
        assert_eq!(report.rules[0].interfaces["eth0"].packets, 3);
        assert_eq!(report.rules[0].interfaces["elsewhere"].packets, 1);
        assert_eq!(report.rules[1].total, Hits::default());
    }

    #[test]
    fn only_changes_are_printed() {
        let (before, after) = (report(3), report(5));
        assert_eq!(
            after.changes(Some(&before)),
            ["80:8080           6 packets in, 600 bytes in, 2 flows (+2 packets)"]
        );
        assert!(after.changes(Some(&after)).is_empty());
    }

    #[test]
    fn columns_stand_below_each_other() {
        let mut report = report(3);
        report.rules[1].rule = "[2001:db8::1]:443:8443/both on eth0".to_owned();
        let lines = report.summary();
        let column = |line: &String| line.find(" packet");
        let columns: Vec<_> = lines.iter().filter_map(column).collect();
        assert_eq!(columns.len(), 4, "{lines:?}");
        assert!(
            columns.iter().all(|column| *column == columns[0]),
            "{lines:?}"
        );
    }

    #[test]
    fn json_has_the_fields_that_programs_rely_on() {
        let json = serde_json::to_value(report(3)).expect("JSON");
        assert_eq!(json["schema"], 1);
        assert_eq!(json["rules"][0]["rule"], "80:8080");
        assert_eq!(json["rules"][0]["packets"], 4);
        assert_eq!(json["rules"][0]["interfaces"]["eth0"]["flows"], 1);
        assert_eq!(json["rules"][1]["last_hit"], serde_json::Value::Null);
        assert_eq!(json["drops"]["no_free_port"], 1);
        assert_eq!(json["drops"].get("restored"), None);
        assert_eq!(json["passes"]["restored"], 4);
    }
}
