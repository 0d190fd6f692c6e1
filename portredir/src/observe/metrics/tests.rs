//! The text keeps the rules that `promtool check metrics` checks, and promtool agrees where
//! it is installed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::process::{Command, Stdio};

use portredir_common::map::counters::{Counter, CounterKey, Outcomes};
use portredir_common::verdict::Reason;
use serde_json::Value;

use super::*;
use crate::loader::counters::Counters;
use crate::observe::attached::sample;
use crate::rule::Rule;

fn metrics() -> Metrics {
    // The name of an interface may have what the text has to escape.
    let rules = ["80:8080", "[2001:db8::1]:53:5353/udp on eth\"0\\"];
    let [first, second] = rules.map(|text| text.parse::<Rule>().expect("a rule"));
    let count = |ifindex, rule, packets| {
        let counter = Counter {
            packets,
            bytes: packets * 100,
            flows: 1,
            last_hit_ns: 5,
        };
        (CounterKey { ifindex, rule }, counter)
    };
    let unknown = CounterKey::UNKNOWN_IFINDEX;
    let outcome = Outcomes {
        accepted: 1,
        refused: 4,
    };
    let counters = Counters {
        requests: HashMap::from([count(2, 0, 6), count(unknown, 0, 1)]),
        replies: HashMap::from([count(2, 0, 60)]),
        outcomes: HashMap::from([(0, outcome)]),
    };
    let mut reasons = vec![0; Reason::COUNT];
    reasons[Reason::NoFreePort as usize] = 3;
    let renamed = sample("eth0", 9, Some(7), None);
    let interfaces = vec![
        sample("eth0", 2, Some(7), None),
        sample("eth1", 3, None, None),
        renamed,
    ];
    let report = Report::new(&[(0, first), (1, second)], interfaces, &counters, &reasons);
    let fill = |table: &str| Fill {
        table: table.to_owned(),
        entries: 5,
        capacity: 1024,
        buckets: 256,
        full_buckets: 1,
    };
    let mut reconciled = Reconciled::default();
    reconciled.add(Duration::from_millis(1500), Some(Timestamp::UNIX_EPOCH));
    reconciled.add(Duration::from_millis(500), None);
    Metrics {
        version: "0.1.0".to_owned(),
        running: Some(Running {
            is_watched: true,
            since: Some(Timestamp::UNIX_EPOCH),
            changed: Some(Timestamp::UNIX_EPOCH),
            report,
            flow_tables: ["tcp", "syn", "udp"].map(fill).into(),
            reconciled: Some(reconciled),
        }),
    }
}

/// The problems that promtool would name, and others that break a graph.
fn problems(text: &str) -> Vec<String> {
    const ABBREVIATIONS: [&str; 8] = ["ms", "sec", "secs", "min", "kb", "mb", "gb", "pct"];
    const SCALED: [&str; 5] = ["milliseconds", "minutes", "hours", "kilobytes", "megabytes"];
    let mut problems = Vec::new();
    let (mut helped, mut types) = (BTreeSet::new(), BTreeMap::new());
    let (mut series, mut done) = (BTreeSet::new(), BTreeSet::new());
    let mut current = "";
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap_or((help, ""));
            if text.is_empty() || !helped.insert(name) {
                problems.push(format!("{name}: no help, or two"));
            }
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap_or((kind, ""));
            if types.insert(name, kind).is_some() || kind == "untyped" {
                problems.push(format!("{name}: untyped, or two types"));
            }
            continue;
        }
        let end = line.find(['{', ' ']).unwrap_or(line.len());
        let name = &line[..end];
        if current != name && !done.insert(name) {
            problems.push(format!("{name}: its series are not together"));
        }
        current = name;
        let Some((labelled, value)) = line.rsplit_once(' ') else {
            problems.push(format!("{line}: no value"));
            continue;
        };
        if value.parse::<f64>().is_err() || !series.insert(labelled) {
            problems.push(format!("{labelled}: no number, or twice"));
        }
        if !helped.contains(name) {
            problems.push(format!("{name}: no help text"));
        }
        let is_counter = types.get(name) == Some(&"counter");
        if is_counter != name.ends_with("_total") || !types.contains_key(name) {
            problems.push(format!("{name}: _total is for counters, and only for them"));
        }
        let mut words = name.split('_');
        if !name.starts_with("portredir_")
            || name
                .bytes()
                .any(|byte| byte.is_ascii_uppercase() || byte == b':')
            || ["_count", "_sum", "_bucket", "_gauge", "_counter"]
                .iter()
                .any(|end| name.ends_with(end))
            || words.any(|word| ABBREVIATIONS.contains(&word) || SCALED.contains(&word))
        {
            problems.push(format!("{name}: not a good name"));
        }
    }
    let empty = types.keys().filter(|name| !done.contains(*name));
    problems.extend(empty.map(|name| format!("{name}: no series")));
    problems
}

fn promtool(text: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        println!("skipped: needs promtool, of the Debian package prometheus");
        return;
    };
    let mut stdin = promtool.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).expect("write");
    drop(stdin);
    let output = promtool.wait_with_output().expect("promtool");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}\n{text}"
    );
}

#[test]
fn the_text_keeps_the_rules_of_prometheus() {
    let nothing = Metrics {
        version: "0.1.0".to_owned(),
        running: None,
    };
    let all = metrics();
    let mut first = all.clone();
    // An older process, and a redirect that nobody keeps.
    let running = first.running.as_mut().expect("running");
    running.flow_tables.clear();
    running.reconciled = None;
    running.is_watched = false;
    for metrics in [nothing, first, all] {
        let text = metrics.text();
        assert_eq!(problems(&text), [""; 0], "{text}");
        promtool(&text);
    }
}

#[test]
fn problems_are_found() {
    for text in [
        "portredir_x 1",
        "# HELP portredir_x X.\n# TYPE portredir_x counter\nportredir_x 1",
        "# HELP portredir_x_total X.\n# TYPE portredir_x_total gauge\nportredir_x_total 1",
        "# HELP portredir_x X.\n# TYPE portredir_x gauge\nportredir_x 1\nportredir_x 1",
        "# HELP portredir_x X.\n# TYPE portredir_x gauge",
        "# HELP portredir_x_ms X.\n# TYPE portredir_x_ms gauge\nportredir_x_ms 1",
    ] {
        assert!(!problems(text).is_empty(), "{text}");
    }
}

#[test]
fn every_count_is_there() {
    let text = metrics().text();
    for line in [
        r#"portredir_build_info{version="0.1.0"} 1"#,
        "portredir_running 1",
        "portredir_watched 1",
        "portredir_rules 2",
        r#"portredir_rule_packets_total{rule="80:8080",direction="in"} 7"#,
        r#"portredir_rule_packets_total{rule="80:8080",direction="out"} 60"#,
        r#"portredir_rule_bytes_total{rule="80:8080",direction="in"} 700"#,
        r#"portredir_rule_bytes_total{rule="80:8080",direction="out"} 6000"#,
        r#"portredir_rule_connections_total{rule="80:8080",outcome="refused"} 4"#,
        r#"portredir_interface_packets_total{interface="eth0",direction="out"} 60"#,
        r#"portredir_rule_flows_total{rule="80:8080"} 2"#,
        r#"portredir_rule_packets_total{rule="[2001:db8::1]:53:5353/udp on eth\"0\\",direction="in"} 0"#,
        r#"portredir_interface_packets_total{interface="eth0",direction="in"} 6"#,
        r#"portredir_interface_packets_total{interface="elsewhere",direction="in"} 1"#,
        r#"portredir_attached{interface="eth0",engine="tc",mode="tcx"} 1"#,
        r#"portredir_attached{interface="eth1",engine="tc",mode="tcx"} 0"#,
        r#"portredir_drops_total{reason="no_free_port"} 3"#,
        r#"portredir_drops_total{reason="table_full"} 0"#,
        r#"portredir_map_entries{map="udp_flows"} 5"#,
        r#"portredir_map_capacity{map="tcp_flows"} 1024"#,
        r#"portredir_map_full_buckets{map="syn_flows"} 1"#,
        "portredir_reconciles_total 2",
        "portredir_reconcile_errors_total 1",
        "portredir_reconcile_duration_seconds_total 2.0",
    ] {
        assert!(text.lines().any(|said| said == line), "{line} in\n{text}");
    }
}

/// A value that is not known is no series: a hook that the kernel does not tell of, and a rule
/// without a packet.
#[test]
fn the_unknown_is_left_out() {
    let mut metrics = metrics();
    let running = metrics.running.as_mut().expect("running");
    for interface in &mut running.report.interfaces {
        interface.state = Some(HookState::Unknown);
    }
    let text = metrics.text();
    assert!(!text.contains("portredir_attached{"), "{text}");
    assert!(
        !text.contains(r#"last_packet_time_seconds{rule="[2001"#),
        "{text}"
    );
    assert!(
        text.contains(r#"last_packet_time_seconds{rule="80:8080"}"#),
        "{text}"
    );
}

/// The Grafana dashboard.
fn dashboard() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/grafana/portredir.json"
    );
    serde_json::from_str(&std::fs::read_to_string(path).expect(path)).expect("JSON")
}

/// The queries of panels, variables and annotations.
fn queries(dashboard: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let panels = list(&dashboard["panels"]);
    let targets = panels.iter().flat_map(|panel| list(&panel["targets"]));
    let mut queries: Vec<_> = targets.map(|target| text(&target["expr"])).collect();
    let notes = list(&dashboard["annotations"]["list"]);
    queries.extend(notes.iter().map(|note| text(&note["expr"])));
    queries
}

/// The words of a query that could be metrics.
fn words(query: &str) -> impl Iterator<Item = &str> {
    let is_end = |letter: char| !letter.is_ascii_alphanumeric() && letter != '_';
    query
        .split(is_end)
        .filter(|word| word.starts_with("portredir_"))
}

#[test]
fn every_query_of_the_dashboard_names_a_metric() {
    let text = metrics().text();
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: BTreeSet<_> = lines.filter_map(|line| line.split(' ').next()).collect();
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("a list");
    let definitions = variables.iter().filter_map(|it| it["definition"].as_str());
    let mut all = queries(&dashboard);
    assert!(all.len() > 15, "{all:?}");
    all.extend(definitions.map(str::to_owned));
    for query in &all {
        assert!(words(query).count() > 0, "{query}");
        for word in words(query) {
            assert!(names.contains(word), "{word} of {query} is no metric");
        }
        // A label that is misspelt selects nothing.
        for (label, _) in query
            .match_indices("by (")
            .map(|(at, _)| query[at + 4..].split_once(')').expect(")"))
        {
            for label in label.split(", ") {
                let is_label = text.contains(&format!("{label}=\"")) || label == "instance";
                assert!(is_label, "{label} of {query} is no label");
            }
        }
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("a list");
    let names: BTreeSet<_> = variables
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    let known = ["__rate_interval", "__all"];
    let text = dashboard.to_string();
    for (at, _) in text.match_indices('$') {
        let rest = text[at + 1..].trim_start_matches('{');
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let name = &rest[..end.expect("an end")];
        assert!(names.contains(name) || known.contains(&name), "${name}");
    }
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().expect("a list") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an ID")), "{title}");
        assert!(
            !panel["description"].as_str().expect("a text").is_empty(),
            "{title}"
        );
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        assert!(at("x") + at("w") <= 24, "{title}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{title} covers another panel");
            }
        }
    }
}

/// promtool parses the queries of the dashboard, and the alerts of the document.
#[test]
fn promtool_understands_queries_and_alerts() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
    let document = std::fs::read_to_string(document).expect(document);
    let (_, alerts) = document.split_once("```yaml\n").expect("alerts");
    let (alerts, _) = alerts.split_once("```").expect("an end");
    let text = metrics().text();
    for word in words(alerts) {
        assert!(
            text.contains(&format!("# TYPE {word} ")),
            "{word} is no metric"
        );
    }
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (number, query) in queries(&dashboard()).iter().enumerate() {
        let query = query.replace("$__rate_interval", "5m").replace('\'', "''");
        rules += &format!("      - record: portredir:query:{number}\n        expr: '{query}'\n");
    }
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in [("alerts.yml", alerts), ("queries.yml", &rules)] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        let checked = Command::new("promtool")
            .args(["check", "rules"])
            .arg(&path)
            .output();
        let Ok(output) = checked else {
            println!("skipped: needs promtool, of the Debian package prometheus");
            return;
        };
        assert!(output.status.success(), "{output:?}\n{text}");
    }
}
