//! The list as text: two lines for each flow, so that it fits into 80 columns and has all.

use std::net::IpAddr;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{Connection, List};
use crate::observe::report::counted;
use crate::observe::table::Header;
use crate::sys::process::Process;

/// The list as text.
#[must_use]
pub fn text(list: &List, header: Header) -> String {
    let ends = lines(
        Table::new(),
        list.connections.iter().map(ends),
        ["PROTO", "STATE", "CLIENT", "DESTINATION:TARGET"],
    );
    let facts = lines(
        Table::new(),
        list.connections.iter().map(facts),
        ["ENGINE", "AGE", "IDLE", "IN", "OUT", "PROCESS", "RULE"],
    );
    let mut text = String::new();
    let header = if list.connections.is_empty() {
        Header::Hidden
    } else {
        header
    };
    for (ends, facts) in header.lines(ends.zip(facts)) {
        text += &format!("{ends}\n      {facts}\n");
    }
    if list.unknown_udp_flows > 0 {
        let flows = counted(list.unknown_udp_flows as u64, "live UDP flow");
        text += &format!(
            "not listed: {flows}, begun under an older version or just now: clients unknown\n"
        );
    }
    text
}

/// The lines of a table, the names of the columns first.
fn lines<const COLUMNS: usize>(
    mut table: Table,
    rows: impl Iterator<Item = [String; COLUMNS]>,
    names: [&str; COLUMNS],
) -> impl Iterator<Item = String> {
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .add_row(names);
    for row in rows {
        table.add_row(row);
    }
    for (column, name) in table.column_iter_mut().zip(names) {
        column.set_padding((0, 1));
        if matches!(name, "AGE" | "IDLE" | "IN" | "OUT") {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.into_iter()
}

fn ends(flow: &Connection) -> [String; 4] {
    let client_port = flow
        .client_port
        .map_or("-".to_owned(), |port| port.to_string());
    [
        flow.protocol.to_owned(),
        flow.state.unwrap_or("-").to_owned(),
        format!("{}:{client_port}", host(flow.client_addr)),
        format!(
            "{}:{}:{}{}",
            host(flow.dst_addr),
            flow.dst_port,
            flow.target_addr
                .map(|addr| host(addr) + ":")
                .unwrap_or_default(),
            flow.target_port
        ),
    ]
}

fn facts(flow: &Connection) -> [String; 7] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        or_dash((!flow.engines.is_empty()).then(|| flow.engines.join("/"))),
        or_dash(flow.age_seconds.map(duration)),
        or_dash(flow.idle_seconds.map(duration)),
        or_dash(flow.bytes_in.map(bytes)),
        or_dash(flow.bytes_out.map(bytes)),
        or_dash(flow.processes.first().map(holder)),
        or_dash(flow.rule.clone()),
    ]
}

/// A process. Its name may be any bytes, and some would command the terminal.
fn holder(process: &Process) -> String {
    let chars = process.name.chars();
    let name: String = chars
        .map(|char| if char.is_control() { '?' } else { char })
        .collect();
    format!("{name}/{}", process.pid)
}

/// An address as it stands before a port.
fn host(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => addr.to_string(),
        IpAddr::V6(addr) => format!("[{addr}]"),
    }
}

/// A duration in its largest unit and the next one.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, ..) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// A number of bytes: whole below 10 000, else with a decimal unit.
pub fn bytes(number: u64) -> String {
    if number < 10_000 {
        return number.to_string();
    }
    let mut value = number as f64;
    for unit in ["k", "M", "G", "T", "P"] {
        value /= 1000.0;
        if value < 99.95 {
            return format!("{value:.1}{unit}");
        }
        if value < 999.5 {
            return format!("{value:.0}{unit}");
        }
    }
    format!("{:.0}E", value / 1000.0)
}

#[cfg(test)]
pub mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::observe::connections::SCHEMA;

    pub fn connection() -> Connection {
        Connection {
            protocol: "tcp",
            state: Some("established"),
            client_addr: "203.0.113.9".parse().expect("an address"),
            client_port: Some(54_321),
            dst_addr: "10.0.0.5".parse().expect("an address"),
            dst_port: 80,
            target_addr: None,
            target_port: 8080,
            rule: Some("80:8080".to_owned()),
            engines: vec!["tc".to_owned()],
            age_seconds: Some(754),
            idle_seconds: Some(3),
            bytes_in: Some(812),
            bytes_out: Some(20_000_123),
            processes: vec![Process {
                pid: 812,
                name: "nginx".to_owned(),
            }],
        }
    }

    fn list(connections: Vec<Connection>) -> List {
        List {
            schema: SCHEMA,
            running: true,
            time: Timestamp::UNIX_EPOCH,
            connections,
            unknown_udp_flows: 0,
        }
    }

    #[test]
    fn columns_stand_below_each_other_and_fit_into_80_columns() {
        let udp = Connection {
            protocol: "udp",
            state: None,
            client_addr: "2001:db8::9".parse().expect("an address"),
            dst_addr: "2001:db8::5".parse().expect("an address"),
            dst_port: 53,
            target_port: 5353,
            rule: None,
            engines: vec!["tc".to_owned(), "xdp".to_owned()],
            age_seconds: None,
            bytes_in: None,
            bytes_out: None,
            processes: vec![Process {
                pid: 5,
                name: "a\x1b[2J\n".to_owned(),
            }],
            ..connection()
        };
        let expected = [
            "PROTO STATE       CLIENT              DESTINATION:TARGET",
            "      ENGINE    AGE IDLE  IN   OUT PROCESS   RULE",
            "tcp   established 203.0.113.9:54321   10.0.0.5:80:8080",
            "      tc     12m34s   3s 812 20.0M nginx/812 80:8080",
            "udp   -           [2001:db8::9]:54321 [2001:db8::5]:53:5353",
            "      tc/xdp      -   3s   -     - a?[2J?/5  -",
        ];
        let both = text(&list(vec![connection(), udp]), Header::Shown);
        assert_eq!(both.lines().collect::<Vec<_>>(), expected, "{both}");
        let widest = Connection {
            client_addr: "255.255.255.255".parse().expect("an address"),
            dst_addr: "255.255.255.255".parse().expect("an address"),
            dst_port: 65_535,
            target_port: 65_535,
            ..connection()
        };
        let text = text(&list(vec![widest]), Header::Hidden);
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (9_999, "9999"),
            (10_000, "10.0k"),
            (99_949, "99.9k"),
            (99_951, "100k"),
            (999_600, "1.0M"),
            (20_000_000, "20.0M"),
        ] {
            assert_eq!(bytes(number), text);
        }
        for (seconds, text) in [
            (59, "59s"),
            (61, "1m01s"),
            (3_600, "1h00m"),
            (90_000, "1d01h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
