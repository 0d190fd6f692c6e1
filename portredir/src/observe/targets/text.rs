//! The list as a table: below the listen part of each rule its targets.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;

use super::{Line, List, State};
use crate::observe::connections::{bytes as number, duration};

const NAMES: [&str; 6] = ["TARGET", "WEIGHT", "STATE", "SINCE", "FLOWS", "PACKETS"];

/// The list as text.
#[must_use]
pub fn text(list: &List) -> String {
    if list.targets.is_empty() {
        return "no rule has several targets, or a target beyond this host\n".to_owned();
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .add_row(NAMES);
    for line in &list.targets {
        table.add_row(row(line, list.time));
    }
    for (column, name) in table.column_iter_mut().zip(NAMES) {
        column.set_padding((0, 1));
        if !matches!(name, "TARGET" | "STATE") {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut rows = table.lines();
    let mut text = String::new();
    if let Some(names) = rows.next() {
        text += &format!("  {}\n", names.trim_end());
    }
    let mut listen = None;
    for (line, row) in list.targets.iter().zip(rows) {
        if listen != Some(&line.listen) {
            text += &format!("{}\n", line.listen);
            listen = Some(&line.listen);
        }
        text += &format!("  {}\n", row.trim_end());
        if let Some(why) = &line.why {
            text += &format!("      {why}\n");
        }
        if let Some(fault) = &line.fault {
            text += &format!("      {fault}\n");
        }
    }
    if let Some(line) = unchecked(list) {
        text += &format!("{line}\n");
    }
    text
}

/// The sentence for when no process makes the health checks.
fn unchecked(list: &List) -> Option<String> {
    let has_checks = list.targets.iter().any(|line| line.check.is_some());
    if list.checking || !has_checks {
        return None;
    }
    let since = list.checked_at.map_or_else(String::new, |at| {
        format!(" since {}", at.strftime("%Y-%m-%dT%H:%M:%SZ"))
    });
    Some(format!(
        "nobody checks targets{since}; all stays as it was; start: portredir watch"
    ))
}

fn row(line: &Line, now: Timestamp) -> [String; 6] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let state = match line.state {
        State::Up => "up",
        State::Drained => "drained",
        State::Down if line.drained => "down, drained",
        State::Down => "down",
        State::Removed => "removed",
    };
    let since = line.since.map(|since| {
        let seconds = now.duration_since(since).as_secs();
        duration(u64::try_from(seconds).unwrap_or(0))
    });
    let weight = (!line.is_else && line.state != State::Removed).then(|| line.weight.to_string());
    [
        if line.is_else {
            format!("else {}", line.target)
        } else {
            line.target.clone()
        },
        or_dash(weight),
        state.to_owned(),
        or_dash(since),
        or_dash(line.flows.map(number)),
        or_dash(line.packets.map(number)),
    ]
}

#[cfg(test)]
mod tests {
    use portredir_common::map::targets::{SLOTS, Slot};
    use portredir_common::net::Port;

    use crate::observe::targets::{Checking, Known, list};
    use crate::ruleset::services::endpoint::Endpoint;
    use crate::ruleset::services::service::{Affinity, Health, Otherwise};
    use crate::ruleset::services::{Services, WantedService, WantedTarget};

    use super::*;

    fn endpoint(host: Option<&str>, port: u16) -> Endpoint {
        Endpoint {
            host: host.map(|host| host.parse().expect("an address")),
            port: Port::new(port),
            range: None,
        }
    }

    fn wanted(key: &str, targets: &[(Endpoint, u16)]) -> WantedService {
        let target = |&(endpoint, weight): &(Endpoint, u16)| WantedTarget { endpoint, weight };
        WantedService {
            key: key.to_owned(),
            rule: 0,
            affinity: Affinity::None,
            cut: false,
            targets: targets.iter().map(target).collect(),
            otherwise: Otherwise::Target(endpoint(None, 9090)),
        }
    }

    fn sample() -> List {
        let mut slots = vec![Slot::default(); SLOTS as usize];
        let hosts = [Some("10.0.0.5"), Some("10.0.0.6"), Some("2001:db8::7")];
        let targets = hosts.map(|host| (endpoint(host, 8080), 1));
        let mut rule = wanted("80 from 10.0.0.0/8 ipv4", &targets);
        let services = Services::default().next(&[rule.clone()], &mut slots);
        rule.targets.pop();
        rule.targets[0].weight = 3;
        let services = services.expect("services").next(&[rule], &mut slots);
        let mut services = services.expect("services");
        let since = Timestamp::UNIX_EPOCH;
        let why = "no answer in 1 s".to_owned();
        services.set_health(2, &Health::Down { since, why }, &mut slots);
        let last = "9090".parse().expect("a selector");
        services.drain(&last, since, &mut slots);
        let now = Timestamp::from_second(125).expect("a time");
        let checking = Checking {
            is_on: true,
            at: Timestamp::from_second(120).ok(),
        };
        list(&services, now, checking, |_, target| Known {
            check: (target.number == 2).then(|| "tcp".to_owned()),
            flows: (target.number == 1).then_some(12),
            packets: Some(20_000 * u64::from(target.number)),
        })
    }

    #[test]
    fn a_line_for_each_target_below_its_rule() {
        let expected = [
            "  TARGET             WEIGHT STATE   SINCE FLOWS PACKETS",
            "80 from 10.0.0.0/8",
            "  10.0.0.5:8080           3 up          -    12   20.0k",
            "  10.0.0.6:8080           1 down    2m05s     -   40.0k",
            "      no answer in 1 s",
            "  else 9090               - drained 2m05s     -   80.0k",
            "  [2001:db8::7]:8080      - removed     -     -   60.0k",
        ];
        let text = text(&sample());
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{text}");
    }

    #[test]
    fn a_fault_of_the_way_stands_below_its_target() {
        let mut list = sample();
        list.targets[0].fault = Some("no route leads to 10.0.0.5".to_owned());
        let text = text(&list);
        let mut lines = text
            .lines()
            .skip_while(|line| !line.contains("10.0.0.5:8080"));
        assert_eq!(
            lines.nth(1),
            Some("      no route leads to 10.0.0.5"),
            "{text}"
        );
    }

    #[test]
    fn says_when_nobody_checks() {
        let mut list = sample();
        assert!(!text(&list).contains("nobody"));
        list.checking = false;
        let text = text(&list);
        let last = text.lines().last().expect("lines");
        let expected = "nobody checks targets since 1970-01-01T00:02:00Z; all stays as it was; \
                        start: portredir watch";
        assert_eq!(last, expected);
        list.targets.retain(|line| line.check.is_none());
        assert!(!super::text(&list).contains("nobody"));
    }

    #[test]
    fn without_targets_a_sentence() {
        let checking = Checking::default();
        let list = list(
            &Services::default(),
            Timestamp::UNIX_EPOCH,
            checking,
            |_, _| Known::default(),
        );
        assert!(text(&list).starts_with("no rule"), "{}", text(&list));
    }

    #[test]
    fn json_has_all_that_the_text_has() {
        let json = serde_json::to_value(sample()).expect("JSON");
        assert_eq!(json["schema"], 1);
        assert_eq!(json["time"], "1970-01-01T00:02:05Z");
        let expected = serde_json::json!({
            "listen": "80 from 10.0.0.0/8",
            "target": "10.0.0.6:8080",
            "addr": "10.0.0.6",
            "port": 8080,
            "last_port": 8080,
            "weight": 1,
            "else": false,
            "state": "down",
            "check": "tcp",
            "drained": false,
            "since": "1970-01-01T00:00:00Z",
            "why": "no answer in 1 s",
            "flows": null,
            "packets": 40_000,
            "interface": null,
            "gateway": null,
            "neighbour": null,
            "fault": null,
        });
        assert_eq!(json["targets"][1], expected);
        assert_eq!(json["targets"][2]["else"], true);
        assert_eq!(json["targets"][2]["addr"], serde_json::Value::Null);
        assert_eq!(json["targets"][3]["state"], "removed");
    }
}
