//! Counters in a form for people and programs.

mod counts;
mod reader;

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use portredir_common::verdict::Reason;
use serde::{Deserialize, Serialize};

use self::counts::shown;
use self::reader::{Clock, Reader};
use super::attached::Interface;
use super::table::Header;
use crate::loader::counters::Counters;
use crate::rule::Rule;

pub use self::counts::{Hits, RuleOutcomes, RuleReport, counted};

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

/// The heads of the table of all counters.
const HEADS: [&str; 8] = [
    "RULE",
    "IN-PKTS",
    "IN-BYTES",
    "OUT-PKTS",
    "OUT-BYTES",
    "FLOWS",
    "ACCEPTED",
    "REFUSED",
];

impl Report {
    /// Makes a report; each rule comes with the number of its counters.
    #[must_use]
    pub fn new(
        rules: &[(u16, Rule)],
        interfaces: Vec<Interface>,
        counters: &Counters,
        reasons: &[u64],
    ) -> Self {
        let clock = Clock::now();
        let reader = Reader::new(&clock, &interfaces, counters);
        let mut rules: Vec<_> = rules.iter().map(|rule| reader.empty(rule)).collect();
        reader.fill(&mut rules);
        let rules = rules.into_iter().map(|(_, rule)| rule).collect();
        let replies: u64 = counters.replies.values().map(|sum| sum.packets).sum();
        let counts = Reason::ALL.iter().zip(reasons);
        let (drops, passes) = counts
            .filter(|(reason, _)| reason.is_counted())
            .map(|(reason, count)| {
                let more = if *reason == Reason::Restored {
                    replies
                } else {
                    0
                };
                (reason, (reason.label().to_owned(), count + more))
            })
            .partition::<Vec<_>, _>(|(reason, _)| reason.is_refusal());
        let by_label = |counts: Vec<(_, _)>| counts.into_iter().map(|(_, count)| count).collect();
        Self {
            schema: SCHEMA,
            time: clock.time,
            rules,
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
                let more = |new: Option<u64>, old: Option<u64>| {
                    let (new, old) = (new.unwrap_or(0), old.unwrap_or(0));
                    new.saturating_sub(old)
                };
                let packets = more(rule.total.packets, old.packets);
                let replies = more(rule.total.packets_out, old.packets_out);
                let flows = rule.total.flows.saturating_sub(old.flows);
                let news = match (packets, replies, flows) {
                    (0, 0, 0) => return None,
                    (0, 0, _) => format!("+{}", counted(flows, "flow")),
                    _ => format!("+{} in, +{replies} out", counted(packets, "packet")),
                };
                Some(format!(
                    "{:<2$} {} ({news})",
                    rule.rule,
                    rule.total,
                    self.width()
                ))
            })
            .collect()
    }

    /// All counters: a table of rules and interfaces, then packets by reason.
    #[must_use]
    pub fn summary(&self, header: Header) -> Vec<String> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(HEADS);
        for rule in &self.rules {
            let outcomes = [rule.outcomes.accepted, rule.outcomes.refused];
            table.add_row(rule.total.row(rule.rule.clone(), outcomes.map(shown)));
            for (name, hits) in &rule.interfaces {
                table.add_row(hits.row(format!("  {name}"), [const { String::new() }; 2]));
            }
        }
        for (i, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 1));
            if i > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines = header.lines(table.lines());
        let mut lines: Vec<_> = lines.map(|line| line.trim_end().to_owned()).collect();
        lines.extend(self.rules.iter().filter_map(RuleReport::unanswered));
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use portredir_common::map::counters::{Counter, CounterKey, Outcomes};

    use super::*;
    use crate::loader::ACCEPT;
    use crate::observe::attached::{HookReport, HookState};
    use crate::state::attachment::InterfaceReport;

    fn report(packets: u64) -> Report {
        let rules = ["80:8080", "53:5353/udp"].map(|r| r.parse().expect("a rule"));
        let [first, second] = rules;
        let rules = [(7, first), (3, second)];
        let hit = |ifindex, rule, packets, flows| {
            let counter = Counter {
                packets,
                bytes: packets * 100,
                flows,
                last_hit_ns: 5,
            };
            (CounterKey { ifindex, rule }, counter)
        };
        let outcomes = Outcomes {
            accepted: 1,
            refused: 0,
        };
        let counters = Counters {
            requests: HashMap::from([
                hit(2, 7, packets, 1),
                hit(CounterKey::UNKNOWN_IFINDEX, 7, 1, 1),
                hit(2, 1, 9, 1),
            ]),
            replies: HashMap::from([hit(2, 7, 2, 0)]),
            outcomes: HashMap::from([(7, outcomes)]),
        };
        let eth0 = InterfaceReport {
            name: "eth0".to_owned(),
            ifindex: 2,
            engine: "tc".to_owned(),
            mode: "tcx".to_owned(),
            why: String::new(),
        };
        let watch = HookReport {
            hook: "cgroup sock_ops".to_owned(),
            program: ACCEPT.to_owned(),
            state: HookState::Attached,
            others: Vec::new(),
        };
        let mut reasons = vec![0; Reason::COUNT];
        reasons[Reason::Restored as usize] = 4;
        reasons[Reason::NoFreePort as usize] = 1;
        Report::new(
            &rules,
            vec![Interface {
                hooks: vec![watch],
                ..Interface::new(eth0, Vec::new())
            }],
            &counters,
            &reasons,
        )
    }

    #[test]
    fn sums_over_interfaces_and_keeps_the_split() {
        let report = report(3);
        assert_eq!(report.rules[0].total.packets, Some(4));
        assert_eq!(report.rules[0].total.bytes, Some(400));
        assert_eq!(report.rules[0].total.packets_out, Some(2));
        assert_eq!(report.rules[0].total.bytes_out, Some(200));
        assert!(report.rules[0].total.last_hit.is_some());
        assert_eq!(report.rules[0].interfaces["eth0"].packets, Some(3));
        assert_eq!(report.rules[0].interfaces["eth0"].packets_out, Some(2));
        assert_eq!(report.rules[0].interfaces["elsewhere"].packets, Some(1));
        assert_eq!(report.rules[1].total, Hits::none(Some(0)));
        let outcomes = RuleOutcomes {
            accepted: Some(1),
            refused: Some(0),
            unanswered: Some(1),
        };
        assert_eq!(report.rules[0].outcomes, outcomes);
        let of_udp = RuleOutcomes {
            refused: Some(0),
            ..RuleOutcomes::default()
        };
        assert_eq!(report.rules[1].outcomes, of_udp);
    }

    #[test]
    fn only_changes_are_printed() {
        let (before, after) = (report(3), report(5));
        assert_eq!(
            after.changes(Some(&before)),
            [
                "80:8080           in 6 packets 600 bytes, out 2 packets 200 bytes, 2 flows (+2 \
                 packets in, +0 out)"
            ]
        );
        assert!(after.changes(Some(&after)).is_empty());
    }

    #[test]
    fn columns_stand_below_each_other() {
        let mut report = report(3);
        report.rules[1].rule = "[2001:db8::1]:443:8443/both on eth0".to_owned();
        let lines = report.summary(Header::Shown);
        assert_eq!(
            lines,
            [
                "RULE                                IN-PKTS IN-BYTES OUT-PKTS OUT-BYTES FLOWS ACCEPTED REFUSED",
                "80:8080                                   4      400        2       200     2        1       0",
                "  elsewhere                               1      100        0         0     1",
                "  eth0                                    3      300        2       200     1",
                "[2001:db8::1]:443:8443/both on eth0       0        0        0         0     0        -       0",
                "80:8080: 1 connection not answered, or not yet",
                "dropped: no_free_port 1",
                "passed: restored 6",
            ]
        );
        assert_eq!(report.summary(Header::Hidden), lines[1..]);
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
        // Those of local clients, and those of rules.
        assert_eq!(json["passes"]["restored"], 4 + 2);
    }
}
