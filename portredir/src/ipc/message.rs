//! The messages of the conversation.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::settings::Settings;
use crate::loader::Unregistered;
use crate::loader::flows::Fill;
use crate::observe::connections::Redirect;
use crate::observe::metrics::Reconciled;
use crate::observe::report::Report;
use crate::observe::targets::List;
use crate::state::stamp::Stamp;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A question for the identity of the process.
    Who,
    /// A question for the running configuration.
    Status,
    /// A question for the maps of the flows and what belongs to them. For root alone, who
    /// may open maps.
    Flows,
    /// A question for the targets of rules. For root alone, as the pins are.
    Targets,
    /// A question for the metrics.
    Metrics,
    /// A notification that a command changed the rules: the process reads them again. For
    /// root alone.
    Changed,
    /// An order to end: in the foreground, as by Ctrl-C; a watcher leaves everything
    /// attached. For root alone.
    Stop,
}

impl Request {
    /// Whether the answer tells the running configuration.
    #[must_use]
    pub const fn is_read(self) -> bool {
        matches!(self, Self::Status | Self::Metrics)
    }
}

/// The kind of process that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A process that redirects for as long as it runs.
    Foreground,
    /// A watcher, which keeps the redirect that `portredir up` made in step with
    /// interfaces and addresses.
    #[serde(rename = "follower")]
    Watcher,
}

/// The identity of the process that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The kind of process.
    pub role: Role,
    /// The ID of the process.
    pub pid: u32,
}

impl Who {
    /// The identity of this process.
    #[must_use]
    pub fn this(role: Role) -> Self {
        let pid = std::process::id();
        Self { role, pid }
    }
}

/// The answer to [`Request::Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The kind of process; none where it only read the pins.
    pub role: Option<Role>,
    /// The ID of the process.
    pub pid: u32,
    /// The version of the process.
    pub version: String,
    /// The options and the rules.
    pub settings: Settings,
    /// The ID of a watcher that does not answer.
    #[serde(default)]
    pub silent: Option<u32>,
    /// The beginning of the redirect. An older process does not tell.
    #[serde(default)]
    pub since: Option<Stamp>,
    /// The last change of the settings.
    #[serde(default)]
    pub changed: Option<Stamp>,
    /// Seconds since the last change was confirmed; none if it was not.
    #[serde(default)]
    pub confirmed_ago: Option<u64>,
    /// Seconds until an unconfirmed change is rolled back.
    pub confirm_within: Option<u64>,
    /// Seconds since the last change was rolled back; none if it was not. An older
    /// process does not tell.
    #[serde(default)]
    pub rolled_back_ago: Option<u64>,
    /// The fill of the flow tables. An older process does not tell.
    #[serde(default)]
    pub flow_tables: Vec<Fill>,
    /// The servers that a socket lookup cannot deliver to. An older process does not tell.
    #[serde(default)]
    pub unregistered: Vec<Unregistered>,
    /// The work of this process; none where it only read the pins.
    #[serde(default)]
    pub reconciled: Option<Reconciled>,
    /// The time at which a process was last checking targets; none where none are to be
    /// checked, or none were. An older process does not tell.
    #[serde(default)]
    pub checked_at: Option<Timestamp>,
    /// Interfaces and counters.
    #[serde(flatten)]
    pub report: Report,
}

/// A reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The request is done, or begun.
    Done(Who),
    /// The running configuration.
    Answer(Box<Answer>),
    /// The redirect, for a list of its flows.
    Flows(Box<Redirect>),
    /// The targets of rules.
    Targets(Box<List>),
    /// The metrics, as text.
    Metrics(String),
    /// The request is refused, for this reason.
    Refused(String),
}
