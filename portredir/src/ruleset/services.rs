//! The services: for each rule with several targets, or with targets beyond this host, the
//! targets and the slots by which clients reach them.
//!
//! This module decides which slot has which target, and gives the numbers; it neither
//! reads nor writes maps. The slots themselves lie in the map `SLOTS` and are handed in,
//! all of them; the caller writes what has changed ([`changed`]).
//!
//! A slot that changes remembers the target before, so the flows of a client stay where
//! they began. Numbers and history outlive targets and rules until [`Services::forget`]
//! hears that no flow is left.

mod balance;
pub mod endpoint;
mod numbers;
mod region;
pub mod service;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::HashSet;
use std::ops::Range;

use portredir_common::map::targets as map;
use portredir_common::map::targets::Slot;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::endpoint::{Endpoint, Selector};
use self::numbers::Numbers;
use self::service::{Affinity, Health, Otherwise, Service, Target};

/// All services, in the order of their rules; then those of rules that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services(Vec<Service>);

/// A service that a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedService {
    /// The listen part of the rule: address, ports, protocol, from, on. No two rules have
    /// the same.
    pub key: String,
    /// The index of the counters of the rule.
    pub rule: u16,
    /// The choice of a slot for a client.
    pub affinity: Affinity,
    /// Whether TCP connections to a target end when it is down.
    pub cut: bool,
    /// The targets for new flows.
    pub targets: Vec<WantedTarget>,
    /// The treatment of new flows while no target is up.
    pub otherwise: Otherwise<Endpoint>,
}

/// A target that a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedTarget {
    /// The place that the target leads to.
    pub endpoint: Endpoint,
    /// The share of new flows, beside the weights of the others.
    pub weight: u16,
}

/// The values of the maps that follow from the services alone, by their indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapContents {
    /// The values of `SERVICES`.
    pub services: Vec<(u16, map::Service)>,
    /// The values of `TARGETS`.
    pub targets: Vec<(u16, map::Target)>,
}

/// The reason why there cannot be such services.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ServicesError {
    /// The numbers of services are used up.
    #[error(
        "more than {most} rules have several targets or an address as their target; \
         use rules for ranges of ports, as in 8000-8100:10.0.0.5:8000-8100",
        most = map::SERVICES - 1
    )]
    TooManyServices,
    /// The numbers of targets are used up.
    #[error(
        "the rules have more than {most} targets together, with those that connections \
         still use; remove targets, or wait until these connections have ended",
        most = map::TARGETS - 1
    )]
    TooManyTargets,
    /// The slots are used up.
    #[error(
        "the targets of `{key}` need {needed} slots for their weights, but not so many of \
         {total} are free; use smaller weights (=3 and =1 instead of =30 and =11), or \
         fewer rules with several targets",
        total = map::SLOTS
    )]
    TooManySlots {
        /// The listen part of the rule.
        key: String,
        /// The number of slots that the rule needs.
        needed: u32,
    },
    /// A rule has the same target twice.
    #[error("`{key}` has the target {endpoint} twice; write it once, with a weight: {endpoint}=2")]
    SameTarget {
        /// The listen part of the rule.
        key: String,
        /// The target.
        endpoint: Endpoint,
    },
    /// Two rules have the same listen part.
    #[error("two rules listen on `{key}`; write one rule with the targets of both")]
    SameKey {
        /// The listen part of the rules.
        key: String,
    },
}

/// The slots that differ, with their indexes.
pub fn changed<'a>(
    before: &'a [Slot],
    after: &'a [Slot],
) -> impl Iterator<Item = (usize, Slot)> + 'a {
    let pairs = before.iter().zip(after).enumerate();
    pairs.filter_map(|(at, (before, after))| (before != after).then_some((at, *after)))
}

impl Services {
    /// The services that come after these. A service keeps its number while a rule has
    /// its key, a target while a service has its endpoint; a new one gets the lowest
    /// number that is unused.
    ///
    /// **Shape**: `slots` is the whole of `SLOTS`, here and below. The slots that a service
    /// leaves stay as they are and are given to another service by a later call at the
    /// earliest, so a packet that is on its way meanwhile finds its target.
    ///
    /// # Errors
    ///
    /// [`ServicesError`]; then no slot changes.
    pub fn next(
        &self,
        wanted: &[WantedService],
        slots: &mut [Slot],
    ) -> Result<Self, ServicesError> {
        check(wanted)?;
        let mut old = self.clone();
        let mut numbers = Numbers::of(&old.0);
        if numbers.left() < wanted.iter().map(|wanted| old.new_targets(wanted)).sum() {
            old.drop_unremembered(slots);
            numbers = Numbers::of(&old.0);
        }
        let mut next = Vec::new();
        for wanted in wanted {
            next.push(old.renewed(wanted, &mut numbers)?);
        }
        let mut used = old.regions();
        let mut laid = Vec::new();
        for service in &mut next {
            let before = &slots[service.region()];
            let slots = lay_out(service, before, &used)?;
            used.push(service.region());
            laid.push((service.region(), slots));
        }
        for (region, laid) in laid {
            slots[region].copy_from_slice(&laid);
        }
        let keys: HashSet<_> = wanted.iter().map(|wanted| wanted.key.as_str()).collect();
        let gone = old.0.into_iter().filter(|old| !keys.contains(&*old.key));
        next.extend(gone.map(|service| Service {
            is_removed: true,
            ..service
        }));
        Ok(Self(next))
    }

    /// The service that a rule asks for, with the slots that it has until now.
    fn renewed(
        &self,
        wanted: &WantedService,
        numbers: &mut Numbers,
    ) -> Result<Service, ServicesError> {
        let old = self.0.iter().find(|old| old.key == wanted.key);
        let mut target = |endpoint: Endpoint, weight: u16| {
            let is_endpoint = |target: &&Target| target.endpoint == endpoint;
            // What a removed target was is not known any more: nobody has checked it.
            let known = old.filter(|old| !old.is_removed);
            let known = known.and_then(|old| old.wanted_targets().find(is_endpoint));
            // That of a rule which was gone has no weight.
            if let Some(known) = known.filter(|known| known.weight > 0 || weight == 0) {
                let known = known.clone();
                return Ok(Target { weight, ..known });
            }
            let known = old.and_then(|old| old.all_targets().find(is_endpoint));
            let number = match known {
                Some(known) => known.number,
                None => numbers.target().ok_or(ServicesError::TooManyTargets)?,
            };
            Ok(Target {
                number,
                endpoint,
                weight,
                health: Health::default(),
                drained: None,
            })
        };
        let targets = wanted.targets.iter();
        let targets = targets.map(|wanted| target(wanted.endpoint, wanted.weight));
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let otherwise = match &wanted.otherwise {
            Otherwise::Rests => Otherwise::Rests,
            Otherwise::Drops => Otherwise::Drops,
            Otherwise::Target(endpoint) => Otherwise::Target(target(*endpoint, 1)?),
        };
        let number = match old {
            Some(old) => old.number,
            None => numbers.service().ok_or(ServicesError::TooManyServices)?,
        };
        let mut service = Service {
            key: wanted.key.clone(),
            number,
            rule: wanted.rule,
            first_slot: old.map_or(0, |old| old.first_slot),
            slots: old.map_or(0, |old| old.slots),
            affinity: wanted.affinity,
            cut: wanted.cut,
            targets,
            otherwise,
            removed: Vec::new(),
            is_removed: false,
        };
        let stay: HashSet<_> = service.wanted_targets().map(|t| t.number).collect();
        let gone = old.into_iter().flat_map(Service::all_targets);
        let gone = gone.filter(|target| !stay.contains(&target.number));
        service.removed = gone.cloned().collect();
        Ok(service)
    }

    /// The number of targets that are new with a service.
    fn new_targets(&self, wanted: &WantedService) -> usize {
        let old = self.0.iter().find(|old| old.key == wanted.key);
        let old = old.into_iter().flat_map(Service::all_targets);
        let old: HashSet<_> = old.map(|target| target.endpoint).collect();
        let targets = wanted.targets.iter().map(|target| target.endpoint);
        let targets = targets.chain(wanted.otherwise.target().copied());
        targets.filter(|endpoint| !old.contains(endpoint)).count()
    }

    /// The regions of slots that are in use.
    fn regions(&self) -> Vec<Range<usize>> {
        self.0.iter().map(Service::region).collect()
    }

    /// Frees the numbers of removed targets that no slot remembers, without asking whether
    /// they have flows.
    fn drop_unremembered(&mut self, slots: &[Slot]) {
        for service in &mut self.0 {
            let remembered = remembered(&slots[service.region()]);
            service
                .removed
                .retain(|target| remembered.contains(&target.number));
        }
    }

    /// Forgets the targets without flows: slots no longer remember them, and the numbers of
    /// removed targets and services are free again.
    ///
    /// `is_alive` tells whether a target has flows. The answer must be younger than the last
    /// change of slots: a flow may begin with a target until its slots have changed.
    pub fn forget(&mut self, is_alive: impl Fn(u16) -> bool, slots: &mut [Slot]) {
        self.0.retain(|service| {
            let mut targets = service.all_targets();
            !service.is_removed || targets.any(|target| is_alive(target.number))
        });
        for service in &mut self.0 {
            let slots = &mut slots[service.region()];
            for slot in slots.iter_mut() {
                let present = slot.0[0];
                let is_kept = |target: u16| target == present || is_alive(target);
                balance::retain(std::slice::from_mut(slot), is_kept);
            }
            let remembered = remembered(slots);
            service
                .removed
                .retain(|target| remembered.contains(&target.number) || is_alive(target.number));
        }
    }

    /// Turns the slots to what the state of the targets asks for, after a change that was
    /// interrupted between slots and state.
    pub fn settle(&self, slots: &mut [Slot]) {
        for service in &self.0 {
            settle(service, &mut slots[service.region()]);
        }
    }

    /// The values of `SERVICES` and `TARGETS`.
    ///
    /// The values of targets have to be written before the slots that lead to them, and the
    /// values of services last: so nothing leads to what is not there yet.
    #[must_use]
    pub fn map_contents(&self) -> MapContents {
        let services = self.0.iter();
        let targets = services.clone().flat_map(|service| {
            let targets = service.all_targets();
            targets.map(|target| (target.number, service.target_value(target)))
        });
        MapContents {
            targets: targets.collect(),
            services: services
                .map(|service| (service.number, service.map_value()))
                .collect(),
        }
    }

    /// All services; those of rules that are gone come last.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.0.iter()
    }

    /// The service of a rule, by its listen part.
    #[must_use]
    pub fn of_key(&self, key: &str) -> Option<&Service> {
        let mut services = self.0.iter().filter(|service| !service.is_removed);
        services.find(|service| service.key == key)
    }

    /// The service and the target of a number in `TARGETS`.
    #[must_use]
    pub fn target(&self, number: u16) -> Option<(&Service, &Target)> {
        self.0.iter().find_map(|service| {
            let mut targets = service.all_targets();
            let target = targets.find(|target| target.number == number)?;
            Some((service, target))
        })
    }

    /// The targets of the rules that a command names.
    pub fn selected(&self, which: Selector) -> impl Iterator<Item = &Target> {
        let services = self.0.iter().filter(|service| !service.is_removed);
        let targets = services.flat_map(Service::wanted_targets);
        targets.filter(move |target| which.matches(&target.endpoint))
    }

    /// Whether numbers and slots are such that the maps have them, and none is there twice.
    /// Only a damaged state is not.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let is_unique = |numbers: Vec<u16>, most: u32| {
            let distinct: HashSet<_> = numbers.iter().collect();
            let is_known = |number: &u16| *number != 0 && u32::from(*number) < most;
            distinct.len() == numbers.len() && numbers.iter().all(is_known)
        };
        let services = self.0.iter().map(|service| service.number).collect();
        let targets = self.0.iter().flat_map(Service::all_targets);
        let mut regions = self.regions();
        regions.sort_by_key(|region| region.start);
        is_unique(services, map::SERVICES)
            && is_unique(targets.map(|target| target.number).collect(), map::TARGETS)
            && self.0.iter().all(|service| service.slots.is_power_of_two())
            && self.0.iter().all(|service| service.slots <= 1 << 16)
            && regions.windows(2).all(|pair| pair[0].end <= pair[1].start)
            && regions
                .last()
                .is_none_or(|last| last.end <= map::SLOTS as usize)
    }
}

/// Refuses keys and targets that are there twice.
fn check(wanted: &[WantedService]) -> Result<(), ServicesError> {
    let mut keys = HashSet::new();
    for WantedService {
        key,
        targets,
        otherwise,
        ..
    } in wanted
    {
        let key = || key.clone();
        if !keys.insert(key()) {
            return Err(ServicesError::SameKey { key: key() });
        }
        let mut endpoints = HashSet::new();
        let targets = targets.iter().map(|target| &target.endpoint);
        for &endpoint in targets.chain(otherwise.target()) {
            if !endpoints.insert(endpoint) {
                let key = key();
                return Err(ServicesError::SameTarget { key, endpoint });
            }
        }
    }
    Ok(())
}

/// Gives a service the slots that its weights need, and returns them. A service keeps more
/// slots than it needs while fewer could not remember everything.
fn lay_out(
    service: &mut Service,
    before: &[Slot],
    used: &[Range<usize>],
) -> Result<Vec<Slot>, ServicesError> {
    let weights: Vec<_> = service.targets.iter().map(|target| target.weight).collect();
    let needed = region::slots_for(&weights);
    let laid = |count: u32| {
        let mut slots = match before {
            [] => vec![Slot([Slot::RESTS; Slot::TARGETS]); count as usize],
            before => region::resized(before, count),
        };
        settle(service, &mut slots);
        slots
    };
    let smaller = laid(needed);
    if needed < service.slots && !region::remembers_all(before, &smaller) {
        return Ok(laid(service.slots));
    }
    if needed != service.slots {
        let first = region::place_for(needed, used);
        service.first_slot = first.ok_or_else(|| ServicesError::TooManySlots {
            key: service.key.clone(),
            needed,
        })?;
        service.slots = needed;
    }
    Ok(smaller)
}

/// Turns the slots of a service to what the state of its targets asks for.
fn settle(service: &Service, slots: &mut [Slot]) {
    let known: HashSet<_> = service.all_targets().map(|target| target.number).collect();
    balance::retain(slots, |target| known.contains(&target));
    if service.is_removed {
        return;
    }
    match service.shares() {
        shares if shares.is_empty() => balance::turn_all(slots, service.last_resort()),
        shares => balance::balance(slots, &shares),
    }
}

/// The targets that slots have or remember.
fn remembered(slots: &[Slot]) -> HashSet<u16> {
    slots
        .iter()
        .copied()
        .flat_map(balance::targets_of)
        .collect()
}
