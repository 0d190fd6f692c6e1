//! Checks of the flow tables: whether there is room, and what became of packets that found
//! none.

use super::subject::Running;
use crate::config::settings::Settings;
use crate::config::value::FlowCount;
use crate::loader::flows::Fill;
use crate::observe::report::counted;
use crate::plan::finding::{Diagnosis, Severity};

const CHECK: &str = "flow-tables";

/// Whether the tables are too small, and whether packets were dropped because of that.
pub fn check(running: &Running, settings: &Settings, diagnosis: &mut Diagnosis) {
    if running.flow_tables.is_empty() {
        diagnosis.not_checked(
            CHECK,
            "the process that redirects is older and does not tell",
        );
    }
    for fill in running.flow_tables.iter().filter(|fill| is_crowded(fill)) {
        let Fill {
            table,
            entries,
            capacity,
            full_buckets,
            ..
        } = fill;
        let what = format!(
            "the table of {table} flows has {entries} of {capacity} flows, and {}",
            counted(*full_buckets, "full bucket")
        );
        let why = "a new flow in a full bucket evicts another one, whose replies then leave with \
                   the target port"
            .to_owned();
        let fix = larger(table, settings);
        diagnosis.find(CHECK, Severity::Warning, [what, why, fix]);
    }
    drops(running, diagnosis);
    let fills = running.flow_tables.iter();
    let fills = fills.map(|fill| format!("{} {} of {}", fill.table, fill.entries, fill.capacity));
    let fills: Vec<_> = fills.collect();
    diagnosis.pass(
        CHECK,
        format!("{}; evictions are not counted", fills.join(", ")),
    );
}

/// Packets that were dropped for want of room.
fn drops(running: &Running, diagnosis: &mut Diagnosis) {
    let causes = [
        (
            "no_free_port",
            "found no free client port",
            "another client of the target port has the same address and port",
            "let clients use one port only: portredir up --hide-target, with the running rules",
        ),
        (
            "table_full",
            "found no place in a flow table",
            "the client gets no answer",
            "portredir up --max-tcp-flows N --max-udp-flows N, with the running rules",
        ),
    ];
    for (reason, what, why, fix) in causes {
        let packets = running.drops.get(reason).copied().unwrap_or(0);
        if packets > 0 {
            let what = format!(
                "{} {what} and {} dropped",
                counted(packets, "packet"),
                were(packets)
            );
            diagnosis.find(
                CHECK,
                Severity::Warning,
                [what, why.to_owned(), fix.to_owned()],
            );
        }
    }
}

const fn were(packets: u64) -> &'static str {
    if packets == 1 { "was" } else { "were" }
}

/// Whether a table is nearly full, or one bucket in a hundred is.
const fn is_crowded(fill: &Fill) -> bool {
    fill.entries * 5 >= fill.capacity * 4 || fill.full_buckets * 100 > fill.buckets
}

/// The command that makes a table larger.
fn larger(table: &str, settings: &Settings) -> String {
    let (option, now) = match table {
        "tcp" => ("max-tcp-flows", settings.max_tcp_flows),
        _ => ("max-udp-flows", settings.max_udp_flows),
    };
    let more = now.get().saturating_mul(4).min(FlowCount::MOST);
    format!("portredir save - | portredir up --config - --{option} {more}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::subject::Role;
    use super::*;

    fn fill(table: &str, entries: u64, full_buckets: u64) -> Fill {
        Fill {
            table: table.to_owned(),
            entries,
            capacity: 1024,
            buckets: 256,
            full_buckets,
        }
    }

    fn found(flow_tables: Vec<Fill>, drops: &[(&str, u64)]) -> Diagnosis {
        let drops = drops
            .iter()
            .map(|(reason, count)| ((*reason).to_owned(), *count));
        let running = Running {
            role: Role::Watched(7),
            confirm_within: None,
            interfaces: Vec::new(),
            silent: None,
            unregistered: Vec::new(),
            flow_tables,
            drops: drops.collect::<BTreeMap<_, _>>(),
        };
        let mut diagnosis = Diagnosis::default();
        check(&running, &Settings::default(), &mut diagnosis);
        diagnosis
    }

    #[test]
    fn a_table_without_room_is_a_finding() {
        for (fill, fix) in [
            (fill("tcp", 818, 0), None),
            (fill("tcp", 820, 0), Some("--max-tcp-flows 1048576")),
            (fill("udp", 500, 2), None),
            (fill("udp", 500, 3), Some("--max-udp-flows 262144")),
            (fill("syn", 1500, 0), Some("--max-udp-flows 262144")),
        ] {
            let diagnosis = found(vec![fill.clone()], &[("no_free_port", 0)]);
            let fixes: Vec<_> = diagnosis
                .findings
                .iter()
                .map(|it| it.fix.as_str())
                .collect();
            assert_eq!(fixes.len(), usize::from(fix.is_some()), "{fill:?}");
            assert!(
                fixes.iter().all(|it| it.ends_with(fix.unwrap_or(""))),
                "{fixes:?}"
            );
            assert_eq!(diagnosis.passed.len(), 1 - fixes.len());
        }
        assert_eq!(found(Vec::new(), &[]).unchecked.len(), 1);
    }

    #[test]
    fn drops_for_want_of_room_are_findings() {
        let diagnosis = found(
            vec![fill("tcp", 1, 0)],
            &[("no_free_port", 1), ("table_full", 2)],
        );
        let whats: Vec<_> = diagnosis
            .findings
            .iter()
            .map(|it| it.what.as_str())
            .collect();
        assert_eq!(
            whats,
            [
                "1 packet found no free client port and was dropped",
                "2 packets found no place in a flow table and were dropped"
            ]
        );
    }
}
