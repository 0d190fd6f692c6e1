//! A case of the conformance tests.

use super::observe::Observation;
use super::site::{SUBJECTS, Site, Subject};
use crate::lab::Family;

/// One stimulus, and how to see what comes of it.
#[derive(Clone, Copy)]
pub struct Case {
    /// The row in the document.
    pub number: u16,
    /// The name in the test.
    pub name: &'static str,
    /// For the document.
    pub stimulus: &'static str,
    /// Whether the rule it needs is one for UDP, which `socket` does not take.
    is_udp: bool,
    families: &'static [Family],
    pub oracle: Oracle,
    pub run: Run,
}

/// The source of the expected outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// The outcome with nft in place of portredir.
    Nft,
    /// nftables has nothing like it: this is demanded.
    Demanded(&'static str),
    /// The outcome with nft where the kernel has a feature, which is this text.
    Feature(&'static str),
}

/// How a case runs.
#[derive(Clone, Copy)]
pub enum Run {
    /// Among others, on hosts that all of them use, once for each IP version,
    /// with and without checksum offload.
    Shared(fn(&Site, Family) -> Observation),
    /// On hosts of its own.
    Own(fn(Subject) -> Observation),
}

const BOTH: &[Family] = &[Family::V4, Family::V6];

impl Case {
    const fn new(number: u16, name: &'static str, stimulus: &'static str, run: Run) -> Self {
        Self {
            number,
            name,
            stimulus,
            is_udp: false,
            families: BOTH,
            oracle: Oracle::Nft,
            run,
        }
    }

    /// Over IPv4 alone.
    pub const fn v4(self) -> Self {
        Self {
            families: &[Family::V4],
            ..self
        }
    }

    /// Over IPv6 only.
    pub const fn v6(self) -> Self {
        Self {
            families: &[Family::V6],
            ..self
        }
    }

    /// The rule it needs is one for UDP.
    pub const fn udp(self) -> Self {
        Self {
            is_udp: true,
            ..self
        }
    }

    /// nftables has nothing like it.
    pub const fn demands(self, what: &'static str) -> Self {
        Self {
            oracle: Oracle::Demanded(what),
            ..self
        }
    }

    /// The case skips itself where the kernel cannot do it; where it can, nft
    /// has this outcome.
    pub const fn known(self, what: &'static str) -> Self {
        Self {
            oracle: Oracle::Feature(what),
            ..self
        }
    }

    /// The IP versions it is run over by a subject; empty when it is not.
    pub fn families(&self, subject: Subject) -> &'static [Family] {
        let is_tried = match (subject, self.run) {
            (Subject::Nft, _) => !matches!(self.oracle, Oracle::Demanded(_)),
            (Subject::Engine("socket"), _) if self.is_udp => false,
            // Two more ways to attach the same datapath.
            (Subject::Engine("xdp-generic" | "tc-clsact"), Run::Own(_)) => false,
            _ => true,
        };
        if is_tried { self.families } else { &[] }
    }

    /// Whether it has hosts of its own.
    pub const fn is_alone(&self) -> bool {
        matches!(self.run, Run::Own(_))
    }

    /// The subjects that run the case.
    pub fn subjects(&self) -> impl Iterator<Item = Subject> {
        SUBJECTS
            .into_iter()
            .filter(|subject| !self.families(*subject).is_empty())
    }
}

/// A case that a rule for TCP is enough for.
pub const fn tcp(
    number: u16,
    name: &'static str,
    stimulus: &'static str,
    run: fn(&Site, Family) -> Observation,
) -> Case {
    Case::new(number, name, stimulus, Run::Shared(run))
}

/// A case that needs a rule for UDP.
pub const fn udp(
    number: u16,
    name: &'static str,
    stimulus: &'static str,
    run: fn(&Site, Family) -> Observation,
) -> Case {
    tcp(number, name, stimulus, run).udp()
}

/// A case with hosts of its own.
pub const fn own(
    number: u16,
    name: &'static str,
    stimulus: &'static str,
    run: fn(Subject) -> Observation,
) -> Case {
    Case::new(number, name, stimulus, Run::Own(run))
}
