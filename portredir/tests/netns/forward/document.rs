//! The outcomes with nftables, which are committed in `oracle.md`, and the part of
//! `docs/CONFORMANCE.md` about targets with an address.

use std::fmt::Write as _;

use super::case::Case;
use super::results::cell;
use super::subject::{SUBJECTS, Subject};
use super::{FAILED, TOPICS, cases, differences, oracle};
use crate::conformance::differences::{Difference, find};
use crate::conformance::document::{DOCUMENT, FORWARDING};
use crate::conformance::outcome::Outcome;
use crate::lab::committed::{Document, wrap};

const ORACLE: Document = Document {
    name: "portredir/tests/netns/forward/oracle.md",
    file: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netns/forward/oracle.md"),
    tests: "forward/oracle",
};

/// The outcome of a case in `oracle.md`.
pub fn committed_outcome(case: &Case) -> String {
    let committed = ORACLE.committed();
    let start = format!("* `{}`: ", case.name);
    let mut lines = committed.lines();
    let line = lines.find_map(|line| line.strip_prefix(&start));
    line.unwrap_or("nothing").to_owned()
}

/// Compares all outcomes with nftables, or writes them.
pub fn check_oracle() {
    let mut text = "\
        # Outcomes with DNAT of nftables\n\n\
        The test `forward/oracle` writes this file; the tests `forward/nft/…` compare with it.\n\n"
        .to_owned();
    for case in cases() {
        let seen = match cell(case, Subject::Nft) {
            Outcome::Seen(text) => text,
            // The outcome on a kernel that has the feature.
            Outcome::Skipped(_) => committed_outcome(case),
        };
        assert!(!seen.contains(FAILED), "case {}: {seen}", case.name);
        writeln!(text, "* `{}`: {seen}", case.name).expect("text");
    }
    ORACLE.check(&text);
}

const INTRO: &str = "
This part compares targets with an address, such as `80:10.0.0.5:8080`, with netfilter's DNAT in the same way. nftables has
the rules

```
ip daddr OWN meta l4proto { tcp, udp } th dport 80 dnat ip to F:8080
```

in chains of type `nat` at the hooks prerouting and output; portredir has `OWN:80:F:8080/both`, and so on for the other ports.

```
client ──┬── interface 1   host   bridge ──┬── F          or an interface each for F and G
     O ──┘                                 └── G
                           host   interface 3 ── R ── Z   MTU 1300 from R to Z
```

Each case runs over IPv4 and IPv6, with F and G behind a bridge (with br_netfilter; with checksum offload and without) and
behind an interface each. Where this makes no difference, the table has one outcome. Packets are written as `SYN s+0/0
client:p > F:8080 ttl 63`: sequence number and acknowledgment (`s+0` is what the client sent, `n` the server's random number),
source, destination, TTL or hop limit; then type of service, identification of packets made by hand, DF, options. ICMP errors
come with the packet that they quote. The test verifies every checksum, and reports bad checksums that a host counted.

The column `expected` has the outcome with nftables; `=` is the same outcome. The engines `xdp`, `xdp-generic` and `socket`
refuse such rules; `auto` uses native XDP on the drivers of real cards alone, which no test here has. A difference that is not
listed in `portredir/tests/netns/forward/differences.toml` fails the test, and so does a listed difference that does not occur. Cases
marked with ◦ have hosts of their own. `PORTREDIR_BLESS=1 cargo test -p portredir --test netns -- forward/document` writes this
part again.

";

/// Compares the part about targets with an address, or writes it.
pub fn check() {
    let part = render();
    assert!(
        !part.contains(FAILED),
        "a case has failed itself: nothing to write down"
    );
    DOCUMENT.check_end(FORWARDING, &part);
}

fn render() -> String {
    let all = differences::read();
    let mut reasons: Vec<&str> = Vec::new();
    let (mut tables, mut differing) = (String::new(), 0);
    for topic in TOPICS {
        write!(
            tables,
            "\n## {}\n\n\
             | | case | stimulus | expected | auto | tc |\n\
             |---|---|---|---|---|---|\n",
            topic.title
        )
        .expect("text");
        for case in topic.cases {
            let cells = [1, 2].map(|at| column(case, SUBJECTS[at], &all, &mut reasons));
            differing += usize::from(cells.iter().any(|cell| cell.as_str() != "="));
            let mark = match case.run {
                super::case::Run::Own(..) => " ◦",
                super::case::Run::Shared(_) => "",
            };
            let (number, name, stimulus) = (case.number, case.name, case.stimulus);
            let (oracle, cells) = (oracle(case), cells.join(" | "));
            writeln!(
                tables,
                "| {number} | `{name}`{mark} | {stimulus} | {oracle} | {cells} |"
            )
            .expect("text");
        }
    }
    let count = cases().count();
    let mut text = format!(
        "{INTRO}{count} cases; an engine differs in {differing} of them, for one of {} reasons.\n",
        reasons.len()
    );
    text += &tables;
    text += "\n## Reasons for differences from DNAT\n\n";
    for (number, reason) in (1..).zip(reasons) {
        text += &wrap(&format!("{number}. {reason}"));
    }
    text
}

/// The cell of a case with one engine.
fn column<'a>(
    case: &'static Case,
    subject: Subject,
    all: &'a [Difference],
    reasons: &mut Vec<&'a str>,
) -> String {
    let listed = find(all, case.name, subject.name());
    let text = match cell(case, subject) {
        // The outcome on a kernel that has the feature.
        Outcome::Skipped(_) => listed.map_or_else(|| oracle(case), |listed| listed.outcome.clone()),
        Outcome::Seen(text) => text,
    };
    if text == oracle(case) {
        return "=".to_owned();
    }
    let reason = listed.map_or("not listed", |listed| &listed.reason);
    let known = reasons.iter().position(|known| *known == reason);
    let number = known.unwrap_or_else(|| {
        reasons.push(reason);
        reasons.len() - 1
    });
    format!("{text} ({})", number + 1)
}
