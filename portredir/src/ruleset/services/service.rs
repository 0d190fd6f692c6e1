//! A service: the targets of one rule, and the slots by which clients reach them.

use std::ops::Range;

use jiff::Timestamp;
use portredir_common::map::targets as map;
use portredir_common::net::Addr;
use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;

/// The choice of a slot for a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// Each connection has a slot of its own.
    #[default]
    None,
    /// All connections of a client's address have one slot.
    Client,
}

/// The treatment of new flows while no target is up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise<T> {
    /// The packets go to the port that they were meant for.
    #[default]
    Rests,
    /// The packets are dropped.
    Drops,
    /// The packets go to a target that is used only then.
    Target(T),
}

impl<T> Otherwise<T> {
    /// The target that is used when no other one is up.
    #[must_use]
    pub const fn target(&self) -> Option<&T> {
        match self {
            Self::Target(target) => Some(target),
            Self::Rests | Self::Drops => None,
        }
    }

    fn target_mut(&mut self) -> Option<&mut T> {
        match self {
            Self::Target(target) => Some(target),
            Self::Rests | Self::Drops => None,
        }
    }
}

/// The result of the health checks of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// The target answers, or has not been checked.
    Up {
        /// The time since when the target answers again; `None` if it was never down.
        since: Option<Timestamp>,
    },
    /// The target does not answer.
    Down {
        /// The time since when.
        since: Timestamp,
        /// The last failure in a few words: `refused`.
        why: String,
    },
}

impl Health {
    /// Whether the target answers.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::Up { since: None }
    }
}

/// A target of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The number in `TARGETS`.
    pub number: u16,
    /// The place that the target leads to.
    pub endpoint: Endpoint,
    /// The share of new flows, beside the weights of the others.
    pub weight: u16,
    /// The result of the health checks.
    pub health: Health,
    /// The time since when the administrator drains the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Timestamp>,
}

impl Target {
    /// Whether the target answers.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.health.is_up()
    }

    /// Whether new flows may begin with the target.
    #[must_use]
    pub const fn takes_new_flows(&self) -> bool {
        self.is_up() && self.drained.is_none()
    }
}

/// The targets of one rule, and the slots by which clients reach them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The listen part of the rule.
    pub key: String,
    /// The number in `SERVICES`.
    pub number: u16,
    /// The index of the counters of the rule.
    pub rule: u16,
    /// The first slot in `SLOTS`.
    pub first_slot: u32,
    /// The number of slots, a power of two.
    pub slots: u32,
    /// The choice of a slot for a client.
    pub affinity: Affinity,
    /// Whether TCP connections to a target end when it is down.
    pub cut: bool,
    /// The targets for new flows.
    pub targets: Vec<Target>,
    /// The treatment of new flows while no target is up.
    pub otherwise: Otherwise<Target>,
    /// The targets that the rule had, whose flows may go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<Target>,
    /// Whether the rule is gone, and the service exists for flows that may go on.
    #[serde(default)]
    pub is_removed: bool,
}

impl Service {
    /// All targets that flows may go to.
    pub fn all_targets(&self) -> impl Iterator<Item = &Target> {
        self.wanted_targets().chain(&self.removed)
    }

    /// The targets that the rule names, also the one for when the others are down.
    pub fn wanted_targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().chain(self.otherwise.target())
    }

    pub(super) fn wanted_targets_mut(&mut self) -> impl Iterator<Item = &mut Target> {
        self.targets.iter_mut().chain(self.otherwise.target_mut())
    }

    /// The indexes of the slots.
    #[must_use]
    pub const fn region(&self) -> Range<usize> {
        // A `usize` has 32 bits or more on each platform that has BPF.
        self.first_slot as usize..self.first_slot as usize + self.slots as usize
    }

    /// The target of each slot while no other target is up.
    pub(super) fn last_resort(&self) -> u16 {
        match &self.otherwise {
            Otherwise::Target(target) if target.takes_new_flows() => target.number,
            Otherwise::Rests | Otherwise::Target(_) => map::Slot::RESTS,
            Otherwise::Drops => map::Slot::DROPS,
        }
    }

    /// The numbers of the targets that new flows begin with, and their weights.
    pub(super) fn shares(&self) -> Vec<(u16, u16)> {
        let targets = self.targets.iter();
        targets
            .filter(|target| target.takes_new_flows() && target.weight > 0)
            .map(|target| (target.number, target.weight))
            .collect()
    }

    /// The value in `SERVICES`.
    pub(super) fn map_value(&self) -> map::Service {
        let affinity = match self.affinity {
            Affinity::None => 0,
            Affinity::Client => map::Service::AFFINITY,
        };
        map::Service {
            first_slot: self.first_slot,
            // There are at most 4096 slots.
            mask: u16::try_from(self.slots - 1).unwrap_or(u16::MAX),
            flags: map::Service::USED | affinity,
        }
    }

    /// The value in `TARGETS` of a target of this service.
    pub(super) fn target_value(&self, target: &Target) -> map::Target {
        let Endpoint { host, port, range } = target.endpoint;
        let flags = [
            (!target.is_up(), map::Target::DEAD),
            (self.cut, map::Target::CUT),
            (host.is_none(), map::Target::HERE),
            (range.is_some(), map::Target::RANGE),
        ];
        let flags = flags.iter().filter(|(is_set, _)| *is_set);
        map::Target {
            addr: host.map_or(Addr::default(), Addr::from),
            port,
            first_dst_port: range.map_or(port, |range| range.first_dst_port),
            rule: self.rule,
            flags: flags.fold(0, |flags, (_, flag)| flags | flag),
            ..map::Target::default()
        }
    }
}
