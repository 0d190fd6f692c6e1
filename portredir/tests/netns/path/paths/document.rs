//! `docs/PATHS.md`: the tables, and why an engine differs from the correct outcome.

use std::fmt::Write as _;

use super::path::{PATHS, Path};
use super::site::Place;
use super::{Difference, Table};
use crate::lab::committed::{Document, is_regenerating, wrap};
use crate::path::ipsec::IN_DOCUMENTS;
use crate::peer::conn::{PROTOS, Proto};

const DOCUMENT: Document = Document {
    name: "docs/PATHS.md",
    file: concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PATHS.md"),
    tests: "paths/",
};

const INTRO: &str = "\
# Paths

This document shows which server a client reaches on each path to a host, under each engine, with the rule
`80:8080/both`. The test `paths` of the tier `netns` writes it: the test builds the hosts below, connects to port 80 on
every path, and records what the client, the server and conntrack saw.

```
client 1 ──── interface 1   host   interface 2 ──── client 2
client 1 ──── interface 3  bridge
container A ────────────────┘  └─────────────── container B
```

The host's server listens on 8080, and nothing listens on 80. Client 2 and container B have servers of their own on 80,
which clients must reach as if portredir did not run. All clients and servers are in one cgroup, as on one machine.
`--iface` selects every interface of the host but interface 3, by which only replies of one path leave.

| cell | meaning |
|---|---|
| `8080 ✓` | correct: the client reached the server on 8080, and every condition below holds |
| `untouched` | correct: the client reached the other host's own server on 80, and every condition below holds |
| other | the outcome that differs; `refused` is the outcome without portredir |
| `-` | this path has no such address |

A cell is correct if all of these hold: the server's local address is the address that the client connected to, and its
local port is the port of the cell; the server sees the client's own address and port (behind the masquerade: the host's
address and the client's port); the reply comes from the address and port that the client connected to; conntrack on the
host found no INVALID packet, before routing and on output. UDP is tested with a connected and with an unconnected socket;
the server replies from the destination address of the request.

Under `auto` every cell has to be correct, or the test fails. The cells that differ under another engine are listed below
its table, with the reason. `PORTREDIR_BLESS=1 cargo test -p portredir --test netns -- paths/` writes this document again.

";

/// Why cells differ from what is right.
struct Explanation {
    covers: fn(&Difference) -> bool,
    text: &'static str,
}

const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        covers: |cell| {
            cell.engine == "tc"
                && is_to_itself(cell.path)
                && cell.proto == Proto::Tcp
                && cell.cell == "8080, INVALID > 0"
        },
        text: "This engine rewrites local traffic on `lo`, where conntrack sees only one half of the rewrite. A firewall \
               that drops INVALID packets on OUTPUT breaks these connections.",
    },
    Explanation {
        covers: |cell| {
            cell.engine == "socket"
                && cell.proto == Proto::Udp
                && cell.path.server == Place::Host
                && cell.cell == "refused"
        },
        text: "`--engine socket` redirects TCP only and refuses rules for UDP (exit code 2); this table uses the rule `80:8080`.",
    },
    Explanation {
        covers: |cell| cell.engine == "socket" && cell.proto == Proto::Tcp && cell.cell == "80 ✓",
        text: "No packet is rewritten, so the server's local port is the destination port; a firewall sees that port too.",
    },
];

/// From the host to the host.
fn is_to_itself(path: &Path) -> bool {
    path.from == Place::Host && path.server == Place::Host
}

/// Compares the whole document, or writes it.
pub fn check(tables: &[&Table]) {
    DOCUMENT.check(&render(tables));
}

/// Compares one table and what is said below it.
pub fn check_section(table: &Table) {
    let section = section(table);
    if is_regenerating() {
        return;
    }
    let document = DOCUMENT.committed();
    let heading = section.lines().next().expect("a heading");
    let from = document.find(heading).unwrap_or(document.len());
    let rest = &document[from..];
    let end = rest.find("\n## ").unwrap_or(rest.len());
    DOCUMENT.compare(&rest[..end], &section);
}

fn render(tables: &[&Table]) -> String {
    let sections: Vec<_> = tables.iter().map(|table| section(table)).collect();
    format!("{INTRO}{IN_DOCUMENTS}\n{}", sections.join("\n"))
}

/// A table with a heading, and what is to be said about it.
fn section(table: &Table) -> String {
    let mut text = format!(
        "## `--engine {}`\n\n\
         | | from | to | TCP v4 | TCP v6 | UDP v4 | UDP v6 |\n\
         |---|---|---|---|---|---|---|\n",
        table.engine
    );
    for (number, (path, cells)) in (1..).zip(PATHS.iter().zip(&table.rows)) {
        let cells = cells.each_ref().map(|cell| cell.as_deref().unwrap_or("-"));
        let from = path.from.name();
        let cells = cells.join(" | ");
        writeln!(text, "| {number} | {from} | {} | {cells} |", path.to).expect("text");
    }
    text + &explain(table)
}

/// Names the cells that are not right, with the reason. There is none for those
/// of `auto`.
fn explain(table: &Table) -> String {
    let mut rest = table.differences(Path::right);
    if rest.is_empty() {
        return String::new();
    }
    let mut text = "\n".to_owned();
    if table.engine == "auto" {
        return text + &wrap(&format!("* To be fixed: {}.", which(&rest)));
    }
    for Explanation { covers, text: why } in EXPLANATIONS {
        let (these, others) = rest.into_iter().partition::<Vec<_>, _>(covers);
        rest = others;
        if let Some(first) = these.first() {
            let line = format!("* `{}` ({}): {why}", first.cell, which(&these));
            text += &wrap(&line);
        }
    }
    assert!(rest.is_empty(), "nothing explains these cells: {rest:#?}");
    text
}

/// Says which cells these are.
fn which(cells: &[Difference]) -> String {
    let of = |proto: Proto| {
        let cells = cells.iter().filter(|cell| cell.proto == proto);
        let mut rows: Vec<_> = cells.map(|cell| (cell.row + 1).to_string()).collect();
        rows.dedup();
        let word = if rows.len() == 1 { "row" } else { "rows" };
        (!rows.is_empty()).then(|| format!("{word} {}", rows.join(", ")))
    };
    match PROTOS.map(of) {
        [Some(tcp), Some(udp)] if tcp == udp => tcp,
        [tcp, udp] => {
            let tcp = tcp.map(|rows| format!("TCP in {rows}"));
            let udp = udp.map(|rows| format!("UDP in {rows}"));
            tcp.into_iter().chain(udp).collect::<Vec<_>>().join(" and ")
        }
    }
}
