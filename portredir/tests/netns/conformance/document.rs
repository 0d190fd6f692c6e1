//! `docs/CONFORMANCE.md`: all cases, the expected outcome of each, and where and why an
//! engine differs.

use std::fmt::Write as _;

use super::case::{Case, Oracle};
use super::differences::{self, Difference};
use super::results::{Cell, cell};
use super::site::Subject;
use super::{FAILED, TOPICS, cases, oracle};
use crate::lab::committed::{Document, wrap};
use crate::path::ipsec::IN_DOCUMENTS;

pub const DOCUMENT: Document = Document {
    name: "docs/CONFORMANCE.md",
    file: concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CONFORMANCE.md"),
    tests: "conformance/document",
};

/// The heading of the part of the document that is about targets with an address, and is
/// written by another test.
pub const FORWARDING: &str = "\n# Targets with an address\n";

/// The README, which names the number of cases.
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");

const INTRO: &str = "\
# Conformance

This document compares portredir with netfilter's REDIRECT, packet by packet. The test `conformance` of the tier `netns`
writes it: the test builds two equal hosts, redirects with nftables on one and with portredir on the other, sends both the
same packets, and records the outcome. nftables has the rules that a user would write,

```
fib daddr type local tcp dport 80 redirect to :8080
```

in chains of type `nat` at the hooks prerouting and output; portredir has `80:8080`, and so on for the other ports.

```
client ──── interface 1   host   interface 2 ──── far
client ──── interface 3  bridge
container A ──────────────┘  └──────────── container B
```

`--iface` selects every interface of the host but interface 3, by which only replies of two cases leave.

Each case runs over IPv4 and IPv6, with checksum offload (the sender leaves the checksum to the hardware, and packets
are segmented late) and without. Where this makes no difference, the table has one outcome. `8080 reached` means that the
server that listens on port 8080 answered. The test verifies every checksum of the replies, and reports bad checksums that
a host counted.

| cell | meaning |
|---|---|
| `=` | as expected |
| `-` | not tested: `--engine socket` refuses rules for UDP |
| other | the outcome that differs; the number refers to the reason below |

The column `expected` has the outcome with nftables, or *required:* and an outcome where nftables has no counterpart. The
column `xdp` stands for `--engine xdp` on veth, and for `xdp-generic` unless the cell says otherwise; the column `tc` stands
for `tc` and `tc-clsact`. `xdp-generic` and `tc-clsact` are tested without offload. Cases marked with ◦ have hosts of
their own, without offload, and are tested with `xdp`, `tc` and `socket`.

A difference that is not listed in `portredir/tests/netns/conformance/differences.toml` fails the test, and so does a
listed difference that does not occur. `PORTREDIR_BLESS=1 cargo test -p portredir --test netns -- conformance/document`
writes this document again.

";

/// Compares the whole document, or writes it.
pub fn check() {
    let document = render();
    assert!(
        !document.contains(FAILED),
        "a case has failed itself: nothing to write down"
    );
    DOCUMENT.check_start(FORWARDING, &document);
}

/// Engines that share a column.
const COLUMNS: [&[&str]; 3] = [&["xdp", "xdp-generic"], &["tc", "tc-clsact"], &["socket"]];

fn render() -> String {
    let all = differences::read();
    let mut reasons = Vec::new();
    let mut text = format!("{INTRO}{IN_DOCUMENTS}");
    let (mut count, mut differing) = (0, 0);
    let mut tables = String::new();
    for topic in TOPICS {
        write!(
            tables,
            "\n## {}\n\n\
             | | case | stimulus | expected | xdp | tc | socket |\n\
             |---|---|---|---|---|---|---|\n",
            topic.title
        )
        .expect("text");
        for case in topic.cases {
            let cells = COLUMNS.map(|engines| column(case, engines, &all, &mut reasons));
            count += 1;
            differing += usize::from(cells.iter().any(|cell| !["=", "-"].contains(&&cell[..])));
            let mark = if case.is_alone() { " ◦" } else { "" };
            let oracle = match case.oracle {
                Oracle::Demanded(what) => format!("*required:* {what}"),
                _ => oracle(case),
            };
            let Case {
                number,
                name,
                stimulus,
                ..
            } = case;
            let cells = cells.join(" | ");
            writeln!(
                tables,
                "| {number} | `{name}`{mark} | {stimulus} | {oracle} | {cells} |"
            )
            .expect("text");
        }
    }
    assert_eq!(count, cases().count());
    let readme = std::fs::read_to_string(README).expect("the README");
    let words = format!("{count} cases");
    assert!(readme.contains(&words), "README.md does not say `{words}`");
    writeln!(
        text,
        "\n{count} cases; an engine differs in {differing} of them, for one of {} reasons.",
        reasons.len()
    )
    .expect("text");
    text += &tables;
    text += "\n## Reasons\n\n";
    for (number, reason) in (1..).zip(reasons) {
        text += &wrap(&format!("{number}. {reason}"));
    }
    text
}

/// The cell of a case in one column.
fn column(
    case: &'static Case,
    engines: &[&'static str],
    all: &[Difference],
    reasons: &mut Vec<String>,
) -> String {
    let mut cells: Vec<(&str, String)> = Vec::new();
    for engine in engines {
        let text = match cell(case, Subject::Engine(engine)) {
            Cell::NotTried => continue,
            // The outcome on a kernel that has the feature.
            Cell::Skipped(_) => differences::find(all, case.name, engine)
                .map_or_else(|| oracle(case), |difference| difference.outcome.clone()),
            Cell::Seen(text) => text,
        };
        let text = if text == oracle(case) {
            "=".to_owned()
        } else {
            let reason = differences::find(all, case.name, engine)
                .map_or("not listed", |difference| &difference.reason);
            format!("{text} ({})", number(reason, reasons))
        };
        cells.push((engine, text));
    }
    match &cells[..] {
        [] => "-".to_owned(),
        [(_, text)] => text.clone(),
        [(_, first), rest @ ..] if rest.iter().all(|(_, text)| text == first) => first.clone(),
        cells => {
            let each = cells
                .iter()
                .map(|(engine, text)| format!("`{engine}`: {text}"));
            each.collect::<Vec<_>>().join(". ")
        }
    }
}

/// The number of a reason, in the order in which they are first told.
fn number(reason: &str, reasons: &mut Vec<String>) -> usize {
    let known = reasons.iter().position(|known| known == reason);
    1 + known.unwrap_or_else(|| {
        reasons.push(reason.to_owned());
        reasons.len() - 1
    })
}
