//! The redirected connections and UDP flows that are live.
//!
//! Everything is read from the kernel: sockets, with what our programs keep at them, and the
//! flow tables. A connection to a port of this host that has no socket in this network
//! namespace is listed when its handshake was seen: only then the flow tables have its
//! addresses.

mod filter;
mod forwarded;
mod list;
mod text;

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::loader::Sizes;
use crate::loader::flow_view::MapIds;
use crate::rule::Rule;
use crate::sys::process::Process;

pub use self::filter::{Filter, FilterError};
pub use self::list::{ListError, list};
pub use self::text::text;
pub(super) use self::text::{bytes, duration};

/// The version of the layout; raised when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// The redirect, as far as a list of its flows needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Redirect {
    /// The rules, each with its number.
    pub rules: Vec<(u16, Rule)>,
    /// The names of the engines that are attached.
    pub engines: BTreeSet<String>,
    /// The sizes of the flow tables.
    pub sizes: Sizes,
    /// The time when the redirect began.
    pub since: Option<Timestamp>,
    /// The maps, of a process that has pinned none.
    pub maps: MapIds,
}

/// All flows at one moment: the object that `--json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct List {
    /// The version of this layout.
    pub schema: u32,
    /// Whether a redirect runs.
    pub running: bool,
    /// The time of the list.
    pub time: Timestamp,
    /// The connections and UDP flows, by protocol, destination port and client.
    pub connections: Vec<Connection>,
    /// The number of live UDP flows of which the clients are not known: an older program
    /// began them, or they were being written.
    pub unknown_udp_flows: usize,
}

/// A redirected connection or UDP flow. What is not known is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// The protocol, `tcp` or `udp`.
    pub protocol: &'static str,
    /// The state of the TCP connection, as ss(8) names it.
    pub state: Option<&'static str>,
    /// The address of the client.
    pub client_addr: IpAddr,
    /// The port of the client.
    pub client_port: Option<u16>,
    /// The address of this host that the client connected to.
    pub dst_addr: IpAddr,
    /// The port that the client connected to.
    pub dst_port: u16,
    /// The address of the target; none of a port of this host.
    pub target_addr: Option<IpAddr>,
    /// The port that the server listens on.
    pub target_port: u16,
    /// The canonical text of the rule; of a rule that was removed there is none.
    pub rule: Option<String>,
    /// The engine; more than one where the kernel does not tell which of them.
    pub engines: Vec<String>,
    /// The seconds since the flow began.
    pub age_seconds: Option<u64>,
    /// The seconds since data came or went.
    pub idle_seconds: Option<u64>,
    /// The bytes from the client, without headers.
    pub bytes_in: Option<u64>,
    /// The bytes to the client that the client has acknowledged, without headers.
    pub bytes_out: Option<u64>,
    /// The process that holds the server's socket, as far as this user may know.
    pub processes: Vec<Process>,
}
