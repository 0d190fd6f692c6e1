//! The answer to a question, in the form that is printed.

use serde::Serialize;

use super::behind::Behind;
use super::judge::Judged;
use super::packet::Packet;
use super::target::OneTarget;

/// The version of the layout; raised when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// The way of one flow: the object that `explain --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The version of this layout.
    pub schema: u32,
    /// The question, with all that was assumed.
    pub flow: String,
    /// Everything that was assumed.
    pub assumed: Vec<String>,
    /// The interface of the program, or by which the flow comes in.
    pub interface: Option<String>,
    /// The engine.
    pub engine: Option<String>,
    /// The hook.
    pub hook: Option<String>,
    /// The program.
    pub program: Option<String>,
    /// The way in which the answer was found.
    pub method: Method,
    /// The end of it: `redirected`, `passed`, `refused` or `dropped`.
    pub verdict: &'static str,
    /// The name of the reason in counters.
    pub reason: &'static str,
    /// The reason in words.
    pub why: String,
    /// The rule that wins.
    pub rule: Option<String>,
    /// The port that the flow reaches, of this host or of [`Self::target`].
    pub port: u16,
    /// The target that the flow gets, of a rule with several or with an address; none where
    /// chance decides, and where no target is up.
    pub target: Option<String>,
    /// The targets of such a rule.
    pub targets: Vec<OneTarget>,
    /// The packet as it comes in; none where a socket is redirected.
    pub before: Option<Packet>,
    /// The packet as the program leaves it; none where it is dropped, and where a socket is
    /// redirected.
    pub after: Option<Packet>,
    /// Every rule that names the destination port.
    pub rules: Vec<Judged>,
    /// The known flow of these ends, in a sentence.
    pub known_flow: Option<String>,
    /// Everything that stands behind the program.
    pub behind: Behind,
}

/// The way in which an answer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The program ran on the packet.
    TestRun,
    /// The functions that the program calls ran here.
    Functions,
    /// No program sees the flow.
    None,
}

impl Method {
    /// The method in words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::TestRun => "a copy of the program ran on the first packet, with the live rules",
            Self::Functions => "no packet changes; the program's own functions decided",
            Self::None => "no program of portredir sees the flow",
        }
    }
}
