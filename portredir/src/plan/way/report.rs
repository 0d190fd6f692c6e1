//! The part of the plan on targets, in a form for people and programs.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::{PlannedTarget, Ways, end};
use crate::plan::finding::{Finding, Unchecked, wrapped};

/// The object that `portredir plan --json` has for targets with an address.
#[derive(Clone, Debug, Serialize)]
pub struct WaysReport<'a> {
    /// The targets.
    pub targets: Vec<TargetReport<'a>>,
    /// The settings of sysctl(8) that `up` writes, and `down` puts back.
    pub forwarding: Vec<String>,
    /// The findings, the heaviest first.
    pub findings: &'a [Finding],
    /// Everything that was not evaluated.
    pub unchecked: &'a [Unchecked],
}

/// The way to one target.
#[derive(Clone, Debug, Serialize)]
pub struct TargetReport<'a> {
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// The egress interface.
    pub interface: Option<&'a str>,
    /// The router.
    pub gateway: Option<IpAddr>,
    /// The address that this host sends from.
    pub source: Option<IpAddr>,
    /// The state of the first host on the way.
    pub neighbour: Option<&'static str>,
}

impl Ways {
    /// The part of the plan as `--json` prints it.
    #[must_use]
    pub fn report(&self) -> WaysReport<'_> {
        let switches = self.forwarding.switches.iter();
        WaysReport {
            targets: self.targets.iter().map(PlannedTarget::report).collect(),
            forwarding: switches.map(|switch| switch.name() + "=1").collect(),
            findings: &self.diagnosis.findings,
            unchecked: &self.diagnosis.unchecked,
        }
    }
}

impl PlannedTarget {
    fn report(&self) -> TargetReport<'_> {
        TargetReport {
            addr: self.addr,
            port: self.port.get(),
            interface: self.interface.as_deref(),
            gateway: self.gateway,
            source: self.source,
            neighbour: self.neighbour.map(|state| state.name()),
        }
    }

    /// The egress interface and the router, in words.
    #[must_use]
    pub fn path(&self) -> String {
        match (&self.interface, self.gateway) {
            (None, _) => "no way".to_owned(),
            (Some(interface), None) => format!("by {interface}"),
            (Some(interface), Some(gateway)) => format!("by {interface} and router {gateway}"),
        }
    }
}

/// Writes a target in one sentence.
impl fmt::Display for PlannedTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())?;
        match self.neighbour {
            Some(state) => write!(f, ", neighbour {}", state.name()),
            None => Ok(()),
        }
    }
}

/// Writes targets, findings and what was not evaluated; every line ends with a line break.
impl fmt::Display for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for target in &self.targets {
            let first = format!("target {}: ", end(target.addr, target.port));
            f.write_str(&wrapped(&first, &target.to_string()))?;
        }
        for finding in &self.diagnosis.findings {
            write!(f, "{finding}")?;
        }
        for unchecked in &self.diagnosis.unchecked {
            let first = format!("not evaluated: {}: ", unchecked.check);
            f.write_str(&wrapped(&first, &unchecked.why))?;
        }
        Ok(())
    }
}
