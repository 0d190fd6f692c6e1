//! The targets of a rule that has several, or one with an address: which of them a new flow
//! gets, and why.

use std::net::{IpAddr, SocketAddr};

use portredir_common::flow::FlowKey;
use portredir_common::map::rules::Choice;
use portredir_common::map::targets::{Service, Slot, Target};
use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port};
use portredir_common::verdict::Reason;

use super::decide::{Decided, key};
use super::explainer::Explainer;
use super::explanation::Method;
use super::packet::Ends;
use super::sockets::{Lookup, Sockets};
use super::target::{OneTarget, ToTargets};
use crate::observe::targets::{Line, State};
use crate::rule::Rule;

/// The slots of a service, each with its present target.
struct Slots<'a> {
    service: Service,
    targets: Vec<Option<&'a Target>>,
}

impl Slots<'_> {
    /// The number of slots that lead to a target, or of those without one.
    fn count(&self, is_it: impl Fn(&Target) -> bool) -> u32 {
        let leads = |target: &&Option<&Target>| target.is_some_and(&is_it);
        u32::try_from(self.targets.iter().filter(leads).count()).unwrap_or(u32::MAX)
    }

    fn len(&self) -> u32 {
        u32::from(self.service.mask) + 1
    }

    const fn is_affine(&self) -> bool {
        self.service.flags & Service::AFFINITY != 0
    }
}

impl Explainer {
    fn slots(&self, choice: Choice, version: u8) -> Slots<'_> {
        let forward = &self.rules.forward;
        let service = forward.service(choice.target.get(), version);
        let numbers = 0..=u32::from(service.mask);
        let present = numbers.map(|number| forward.slot(service.first_slot + number).0[0]);
        let targets = present.map(|number| match number {
            Slot::RESTS | Slot::DROPS => None,
            number => forward.target(number),
        });
        Slots {
            service,
            targets: targets.collect(),
        }
    }

    /// The targets of the rule of a packet, which a program has given its destination.
    pub(super) fn targets_of_packet(
        &self,
        (choice, ifindex): (Choice, u32),
        (ends, after): (&Ends, Option<&Ends>),
    ) -> Option<ToTargets> {
        let key = key(ends);
        let rule = self.rule(choice.rule)?;
        let slots = self.slots(choice, key.version);
        let sockets = Sockets::new(
            (&self.rules, &self.redirect.live),
            (&self.servers, &[]),
            ifindex,
            Lookup::default(),
        );
        let slot = sockets.slot_of(&key, choice);
        let slot = slot.map(|slot| slot.wrapping_sub(slots.service.first_slot));
        let end = after.map(|after| after.dst);
        let by = if slots.is_affine() {
            "by the hash of the client's address, as the rule says `affinity client`"
        } else {
            "by the hash of the addresses and ports of the flow"
        };
        let lines = self.lines(rule, &key);
        let targets = lines.map(|line| {
            let own = slots.count(|target| is_of(target, line));
            let wins = end.is_some_and(|end| is_end(line, ends.dst.0, end));
            let why = match slot {
                Some(slot) if wins && own < slots.len() => {
                    format!("slot {slot} of {}, {by}", slots.len())
                }
                _ => state_of(line, own, slots.len()),
            };
            OneTarget::of(line, Some(wins), (own, slots.len()), why)
        });
        Some(ToTargets {
            end,
            targets: targets.collect(),
        })
    }

    /// The decision about a process that connects by a rule with targets.
    pub(super) fn connect_to_targets(
        &self,
        (ends, own_port): (&Ends, Port),
        choice: Choice,
    ) -> Option<Decided> {
        let key = key(ends);
        let rule = self.rule(choice.rule)?;
        let all = self.slots(choice, key.version).len();
        let sockets = Sockets::new(
            (&self.rules, &self.redirect.live),
            (&self.servers, &[]),
            LOOPBACK_IFINDEX,
            Lookup::default(),
        );
        let outcomes = sockets.chances(ends.protocol, (ends.dst, own_port), all);
        let (first, _) = outcomes.first().copied()?;
        let is_redirected = |reason| reason == Reason::Redirected;
        let end = |(addr, port): (Addr, Port)| (IpAddr::from(addr.octets()).to_canonical(), port);
        let is_sure = outcomes.len() == 1;
        let lines = self.lines(rule, &key);
        let targets = lines.map(|line| {
            let leads = outcomes.iter().filter(|(decision, _)| {
                let to = end((decision.addr, decision.port));
                is_redirected(decision.reason) && is_end(line, ends.dst.0, to)
            });
            let own = leads.map(|(_, times)| times).sum();
            let wins = if is_sure || own == 0 {
                Some(own > 0)
            } else {
                None
            };
            let why = if is_sure || own == 0 {
                state_of(line, own, all)
            } else {
                format!("{own} of {all} connections, by chance")
            };
            OneTarget::of(line, wins, (own, all), why)
        });
        let is_up = is_redirected(first.reason);
        let to_targets = ToTargets {
            end: (is_sure && is_up).then(|| end((first.addr, first.port))),
            targets: targets.collect(),
        };
        Some(Decided {
            method: Method::Functions,
            ifindex: LOOPBACK_IFINDEX,
            reason: first.reason,
            why: None,
            rule: first.rule,
            port: if is_up { first.port } else { ends.dst.1 },
            after: None,
            to_targets: Some(to_targets),
        })
    }

    fn rule(&self, number: u16) -> Option<&Rule> {
        let mut rules = self.redirect.rules.iter();
        rules.find_map(|(id, rule)| (*id == number).then_some(rule))
    }

    /// The targets of a rule that clients of a flow's IP version can have.
    fn lines(&self, rule: &Rule, key: &FlowKey) -> impl Iterator<Item = &Line> {
        let listen = rule.listen_key();
        let is_v4 = key.local.is_v4();
        let lines = self.redirect.targets.iter();
        lines.filter(move |line| {
            let is_version = line.addr.is_none_or(|addr| addr.is_ipv4() == is_v4);
            line.listen == listen && line.state != State::Removed && is_version
        })
    }

    /// The forwarded flow that the tables have for these ends.
    pub(super) fn known_forward(&self, ends: &Ends) -> Option<String> {
        let forwards = self.redirect.live.forwards();
        let own = key(ends);
        let mut flows = forwards.live().filter(|flow| flow.own != 0);
        let known = flows.find_map(|flow| {
            let begun = flow.begun?;
            let is_it = flow.protocol == ends.protocol
                && begun.key.client == own.client
                && begun.key.client_port == own.client_port
                && flow.entry.flow().dst_port == own.local_port;
            is_it.then_some(begun.key)
        })?;
        let addr = IpAddr::from(known.local.octets()).to_canonical();
        let end = SocketAddr::new(addr, known.local_port.get());
        Some(format!("known: its packets go on to {end}"))
    }
}

/// Whether a target of the maps is one of the list.
fn is_of(target: &Target, line: &Line) -> bool {
    let addr = match line.addr {
        Some(addr) => !target.has(Target::HERE) && target.addr == Addr::from(addr),
        None => target.has(Target::HERE),
    };
    addr && target.port.get() == line.port
}

/// Whether an end is one that a target of the list has for clients of an address.
fn is_end(line: &Line, dialled: IpAddr, (addr, port): (IpAddr, Port)) -> bool {
    let ports = line.port..=line.last_port;
    line.addr.unwrap_or(dialled) == addr && ports.contains(&port.get())
}

/// The reason why a target gets new flows, or none.
fn state_of(line: &Line, own: u32, all: u32) -> String {
    let why = line.why.as_deref().unwrap_or("its health checks fail");
    match line.state {
        State::Drained => "drained: new flows begin elsewhere".to_owned(),
        State::Down => format!("down: {why}"),
        State::Removed => "removed".to_owned(),
        State::Up if own == 0 && line.is_else => "for while no other target is up".to_owned(),
        State::Up if own == all => "all new flows go there".to_owned(),
        State::Up => format!("up, with {own} of {all} slots"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(addr: Option<&str>, state: State) -> Line {
        Line {
            listen: "80".to_owned(),
            target: "T".to_owned(),
            addr: addr.map(|addr| addr.parse().expect("an address")),
            port: 8080,
            last_port: 8082,
            weight: 1,
            is_else: false,
            state,
            check: None,
            drained: false,
            since: None,
            why: None,
            flows: None,
            packets: None,
            interface: None,
            gateway: None,
            neighbour: None,
            fault: None,
        }
    }

    #[test]
    fn a_target_of_this_host_is_at_the_address_that_was_dialled() {
        let dialled: IpAddr = "192.0.2.1".parse().expect("an address");
        let other: IpAddr = "10.0.0.5".parse().expect("an address");
        let here = line(None, State::Up);
        assert!(is_end(&here, dialled, (dialled, Port::new(8081))));
        assert!(!is_end(&here, dialled, (other, Port::new(8081))));
        let there = line(Some("10.0.0.5"), State::Up);
        assert!(is_end(&there, dialled, (other, Port::new(8082))));
        assert!(!is_end(&there, dialled, (other, Port::new(8083))));
        assert!(!is_end(&there, dialled, (dialled, Port::new(8080))));
    }

    #[test]
    fn a_target_of_the_maps_is_found_in_the_list() {
        let target = Target {
            addr: Addr::from("10.0.0.5".parse::<IpAddr>().expect("an address")),
            port: Port::new(8080),
            ..Target::default()
        };
        let here = Target {
            flags: Target::HERE,
            ..target
        };
        assert!(is_of(&target, &line(Some("10.0.0.5"), State::Up)));
        assert!(!is_of(&target, &line(Some("10.0.0.6"), State::Up)));
        assert!(!is_of(&target, &line(None, State::Up)));
        assert!(is_of(&here, &line(None, State::Up)));
        assert!(!is_of(&here, &line(Some("10.0.0.5"), State::Up)));
    }

    #[test]
    fn states_are_reasons() {
        let mut last = line(None, State::Up);
        last.is_else = true;
        let down = Line {
            why: Some("refused".to_owned()),
            ..line(None, State::Down)
        };
        let drained = line(None, State::Drained);
        assert_eq!(state_of(&last, 0, 8), "for while no other target is up");
        assert_eq!(state_of(&last, 8, 8), "all new flows go there");
        assert_eq!(state_of(&down, 0, 8), "down: refused");
        assert_eq!(
            state_of(&drained, 0, 8),
            "drained: new flows begin elsewhere"
        );
        assert_eq!(
            state_of(&line(None, State::Up), 3, 8),
            "up, with 3 of 8 slots"
        );
    }
}
