//! The counts of rules.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The counters of one rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleReport {
    /// The canonical text of the rule.
    pub rule: String,
    /// The counts on all interfaces.
    #[serde(flatten)]
    pub total: Hits,
    /// The outcomes of the flows.
    #[serde(flatten)]
    pub outcomes: RuleOutcomes,
    /// The counts by interface.
    pub interfaces: BTreeMap<String, Hits>,
}

/// The packets that a rule redirected, and the replies. `None` where the engine sees no
/// packets: for local clients, and with engine `socket`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// The packets from client to server.
    pub packets: Option<u64>,
    /// The bytes of these packets, with all headers.
    pub bytes: Option<u64>,
    /// The packets from server to client. An older process does not tell.
    #[serde(default)]
    pub packets_out: Option<u64>,
    /// The bytes of these packets, with all headers.
    #[serde(default)]
    pub bytes_out: Option<u64>,
    /// The number of flows that began.
    pub flows: u64,
    /// The time of the last packet from a client; of the last flow, where packets are not
    /// seen.
    pub last_hit: Option<Timestamp>,
}

/// The outcomes of the flows on interfaces where packets are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleOutcomes {
    /// The TCP connections that a server accepted. `None` for a rule without TCP, and
    /// where the kernel does not tell of connections.
    pub accepted: Option<u64>,
    /// The refusals: RSTs that answered a SYN, and ICMP errors "destination unreachable".
    pub refused: Option<u64>,
    /// The TCP connections that were neither accepted nor refused, or not yet. `None` also
    /// for a rule with UDP, whose flows nobody accepts.
    pub unanswered: Option<u64>,
}

/// A count, or a dash.
pub(super) fn shown(count: Option<u64>) -> String {
    count.map_or("-".to_owned(), |count| count.to_string())
}

impl RuleReport {
    /// A line about connections that were not answered.
    pub(super) fn unanswered(&self) -> Option<String> {
        let number = self.outcomes.unanswered.filter(|number| *number > 0)?;
        let connections = counted(number, "connection");
        let line = format!("{}: {connections} not answered, or not yet", self.rule);
        Some(line)
    }
}

impl Hits {
    /// No packets; `None` where none are seen.
    pub(super) fn none(zero: Option<u64>) -> Self {
        Self {
            packets: zero,
            bytes: zero,
            packets_out: zero,
            bytes_out: zero,
            ..Self::default()
        }
    }

    /// A row of the table.
    pub(super) fn row(&self, name: String, outcomes: [String; 2]) -> Vec<String> {
        let [accepted, refused] = outcomes;
        let counts = [self.packets, self.bytes, self.packets_out, self.bytes_out];
        let mut row = vec![name];
        row.extend(counts.map(shown));
        row.extend([self.flows.to_string(), accepted, refused]);
        row
    }
}

impl std::fmt::Display for Hits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let directions = [
            ("in", self.packets, self.bytes),
            ("out", self.packets_out, self.bytes_out),
        ];
        for (name, packets, bytes) in directions {
            if let (Some(packets), Some(bytes)) = (packets, bytes) {
                let (packets, bytes) = (counted(packets, "packet"), counted(bytes, "byte"));
                write!(f, "{name} {packets} {bytes}, ")?;
            }
        }
        f.write_str(&counted(self.flows, "flow"))
    }
}

/// A number and its noun: `1 rule`, `2 rules`.
#[must_use]
pub fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
