//! The present ways to targets of rules that run: routes, links and neighbours alone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portredir_common::net::Port;

use super::{PlannedTarget, Planner, WantedWay, WayRequest};
use crate::host::forwarding::Switch;
use crate::host::snapshot::Snapshot;
use crate::host::way::Facts;
use crate::plan::finding::{Diagnosis, Finding};
use crate::rule::Protocols;
use crate::sys::netlink::NetlinkError;

/// The present way to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentWay {
    /// The target.
    pub target: PlannedTarget,
    /// The faults of its route, its link and its neighbour.
    pub findings: Vec<Finding>,
}

impl WantedWay {
    /// A target of which the way alone is to be known.
    #[must_use]
    pub const fn alone(rule: String, (target, port): (IpAddr, Port)) -> Self {
        Self {
            rule,
            target,
            port,
            protocols: Protocols::Both,
            from: None,
            dialled: None,
            ingress: BTreeSet::new(),
        }
    }
}

impl PresentWay {
    /// The ways to targets of which nothing else is to be known.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`]: the kernel does not answer.
    pub fn look(host: &Snapshot, wanted: &[WantedWay]) -> Result<Vec<Self>, NetlinkError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let request = WayRequest {
            wanted,
            local: None,
            may_enable: false,
        };
        let facts = Facts::without_filters(host, &request.targets(), &request.ingress())?;
        Ok(Self::all(&facts, request))
    }

    /// The ways to all targets, each once for each port.
    #[must_use]
    pub fn all(facts: &Facts, request: WayRequest<'_>) -> Vec<Self> {
        let mut ways: Vec<Self> = Vec::new();
        for wanted in request.wanted {
            let target = PlannedTarget::of(wanted, facts);
            if ways.iter().any(|way| way.target == target) {
                continue;
            }
            let mut planner = Planner {
                facts,
                request,
                diagnosis: Diagnosis::default(),
            };
            planner.check_route(wanted);
            ways.push(Self {
                target,
                findings: planner.diagnosis.findings,
            });
        }
        ways
    }
}

/// An interface that has to forward the packets of an IP version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forwarder {
    /// The switch.
    pub switch: Switch,
    /// The index of the interface.
    pub index: u32,
    /// Whether such packets are forwarded.
    pub is_on: bool,
}

impl Forwarder {
    /// The interface and the switch alone, for comparisons.
    #[must_use]
    pub fn key(self) -> Self {
        Self {
            is_on: false,
            ..self
        }
    }
}

/// The interfaces that have to forward, whether they do or not.
#[must_use]
pub fn forwarders(facts: &Facts, request: WayRequest<'_>) -> Vec<Forwarder> {
    let planner = Planner {
        facts,
        request,
        diagnosis: Diagnosis::default(),
    };
    let mut forwarders = Vec::new();
    for wanted in request.wanted {
        for device in planner.forwarding(wanted) {
            forwarders.push(Forwarder {
                switch: planner.switch(wanted.target, device),
                index: device.index,
                is_on: device.forwards(wanted.target),
            });
        }
    }
    forwarders
}
