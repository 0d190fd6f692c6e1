//! The targets of rules with several targets, or with targets beyond this host, and the
//! state of each.

mod text;

use std::net::IpAddr;

use jiff::Timestamp;
use portredir_common::net::Port;
use serde::{Deserialize, Serialize};

use crate::host::snapshot::Snapshot;
use crate::host::way::Neighbour;
use crate::plan::way::WantedWay;
use crate::plan::way::present::PresentWay;
use crate::ruleset::forwarding;
use crate::ruleset::services::Services;
use crate::ruleset::services::service::{Health, Service, Target};
use crate::sys::netlink::NetlinkError;

pub use self::text::text;

/// The version of the layout; raised when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// All targets at one moment: the object that `--json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The version of this layout.
    pub schema: u32,
    /// Whether a redirect runs.
    pub running: bool,
    /// The time of the list.
    pub time: Timestamp,
    /// Whether a process makes the health checks; without one all states stay as they are.
    pub checking: bool,
    /// The time at which a process was last making health checks, to ten seconds; null where
    /// none ever did, and for a process in the foreground.
    pub checked_at: Option<Timestamp>,
    /// The targets, in the order of the rules.
    pub targets: Vec<Line>,
}

/// The state of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// New flows begin with the target, as far as its weight allows.
    Up,
    /// The administrator drains the target: its flows stay, and new ones begin elsewhere.
    Drained,
    /// The health checks fail.
    Down,
    /// The rule has the target no more; its flows stay.
    Removed,
}

/// A target of a rule. What is not known is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The listen part of the rule.
    pub listen: String,
    /// The target as rules have it.
    pub target: String,
    /// The address; null for a port of this host.
    pub addr: Option<IpAddr>,
    /// The port, or the first one of a range.
    pub port: u16,
    /// The last port; `port` again unless there is a range.
    pub last_port: u16,
    /// The share of new flows, beside the weights of the other targets of the rule.
    pub weight: u16,
    /// Whether the target is used only while no other one of the rule is up.
    #[serde(rename = "else")]
    pub is_else: bool,
    /// The state.
    pub state: State,
    /// The question of the health check; null where the target is not checked.
    pub check: Option<String>,
    /// Whether the administrator drains the target, whatever its state is.
    pub drained: bool,
    /// The time since when the target is in its state.
    pub since: Option<Timestamp>,
    /// The last failure of the health checks, of a target that is down.
    pub why: Option<String>,
    /// The flows that are alive.
    pub flows: Option<u64>,
    /// The packets to the target.
    pub packets: Option<u64>,
    /// The egress interface of packets to the address.
    #[serde(default)]
    pub interface: Option<String>,
    /// The router on the way to the address.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// The state of the first host on the way, as `ip neigh` has it.
    #[serde(default)]
    pub neighbour: Option<Neighbour>,
    /// The fault of the way to the address.
    #[serde(default)]
    pub fault: Option<String>,
}

/// The process that makes the health checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checking {
    /// Whether there is one.
    pub is_on: bool,
    /// The time at which there was one, as far as it was written down.
    pub at: Option<Timestamp>,
}

/// The part of a line that a service does not tell, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The question of the health check.
    pub check: Option<String>,
    /// The flows that are alive.
    pub flows: Option<u64>,
    /// The packets to the target.
    pub packets: Option<u64>,
}

/// The list of all targets.
#[must_use]
pub fn list(
    services: &Services,
    time: Timestamp,
    checking: Checking,
    known: impl Fn(&Service, &Target) -> Known,
) -> List {
    let targets = services.iter().flat_map(|service| {
        let wanted = service
            .wanted_targets()
            .map(|target| (target, service.is_removed));
        let removed = service.removed.iter().map(|target| (target, true));
        let all = wanted.chain(removed);
        let known = &known;
        all.map(move |(target, is_removed)| {
            line(service, target, is_removed, known(service, target))
        })
    });
    List {
        schema: SCHEMA,
        running: true,
        time,
        checking: checking.is_on,
        checked_at: checking.at,
        targets: targets.fold(Vec::new(), add),
    }
}

/// Adds a line. A port of this host is a target of the clients of each IP version, with one
/// check: it has one line for both.
fn add(mut lines: Vec<Line>, line: Line) -> Vec<Line> {
    let key = |line: &Line| {
        (
            line.listen.clone(),
            line.target.clone(),
            line.is_else,
            line.state,
        )
    };
    let same = lines.iter_mut().find(|known| key(known) == key(&line));
    match same {
        Some(known) if line.addr.is_none() => {
            let sum = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
            known.flows = sum(known.flows, line.flows);
            known.packets = sum(known.packets, line.packets);
        }
        _ => lines.push(line),
    }
    lines
}

fn line(service: &Service, target: &Target, is_removed: bool, known: Known) -> Line {
    let endpoint = &target.endpoint;
    let (state, since, why) = match &target.health {
        _ if is_removed => (State::Removed, None, None),
        Health::Down { since, why } => (State::Down, Some(*since), Some(why.clone())),
        Health::Up { .. } if target.drained.is_some() => (State::Drained, target.drained, None),
        Health::Up { since } => (State::Up, *since, None),
    };
    let Known {
        check,
        flows,
        packets,
    } = known;
    let last = service.otherwise.target();
    Line {
        listen: forwarding::listen_part(service).to_owned(),
        target: endpoint.to_string(),
        addr: endpoint.host,
        port: endpoint.port.get(),
        last_port: endpoint
            .range
            .map_or(endpoint.port, |range| range.last_port)
            .get(),
        weight: target.weight,
        is_else: last.is_some_and(|last| last.number == target.number),
        state,
        check: check.filter(|_| !is_removed),
        drained: target.drained.is_some() && !is_removed,
        since,
        why,
        flows,
        packets,
        interface: None,
        gateway: None,
        neighbour: None,
        fault: None,
    }
}

impl List {
    /// Asks the kernel for the present ways to the targets.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`]: the kernel does not answer.
    pub fn look(&mut self, host: &Snapshot) -> Result<(), NetlinkError> {
        let wanted: Vec<_> = self.targets.iter().filter_map(Line::wanted).collect();
        for way in PresentWay::look(host, &wanted)? {
            let lines = self.targets.iter_mut();
            for line in lines.filter(|line| line.addr == Some(way.target.addr)) {
                line.interface.clone_from(&way.target.interface);
                line.gateway = way.target.gateway;
                line.neighbour = way.target.neighbour;
                line.fault = way.findings.first().map(|finding| finding.what.clone());
            }
        }
        Ok(())
    }
}

impl Line {
    /// The way that has to be known, where the target has an address.
    fn wanted(&self) -> Option<WantedWay> {
        let end = (self.addr?, Port::new(self.port));
        Some(WantedWay::alone(self.listen.clone(), end))
    }
}
