//! From a question to the answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::flow::FlowKey;
use portredir_common::map::rules::{PortEntry, PreviousTargets};
use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port};
use portredir_common::verdict::{Reason, Verdict};

use super::behind::{Behind, Fate};
use super::decide::{Decided, key};
use super::error::ExplainError;
use super::explainer::Explainer;
use super::explanation::{Explanation, Method, SCHEMA};
use super::judge::judge;
use super::packet::Ends;
use super::place::{Place, Way};
use super::query::{Client, Query};
use super::sockets::choose;
use super::target::ToTargets;
use crate::observe::listening::Listeners;

/// The client port of a packet where none is given.
const CLIENT_PORT: Port = Port::new(49_152);

impl Explainer {
    /// Explains a flow.
    ///
    /// # Errors
    ///
    /// [`ExplainError`].
    pub fn explain(&mut self, query: &Query) -> Result<Explanation, ExplainError> {
        let is_local = match query.client {
            Client::Local => true,
            Client::At(addr) => query.on.is_none() && self.is_own(Addr::from(addr)),
        };
        let mut place = Place::find(&self.redirect, query, is_local)?;
        let client = match query.client {
            Client::At(addr) => addr,
            Client::Local => destination(query),
        };
        let is_given = query.client_port.is_some();
        if !is_given && matches!(place.way, Way::Packets { .. }) {
            let port = CLIENT_PORT.get();
            place.assumed.push(format!("client port {port}"));
        }
        let ends = Ends {
            protocol: query.protocol,
            src: (client, query.client_port.unwrap_or(CLIENT_PORT)),
            dst: (destination(query), query.port),
        };
        let key = key(&ends);
        let decided = self.decide(&place, &ends, query)?;
        if self.compared.get(&place.ifindex) == Some(&Some(false)) {
            place.assumed.push(
                "the attached program, of another version, does the same as the copy".to_owned(),
            );
        }
        let choice = choose(&self.rules, &key, decided.ifindex);
        Ok(self.explanation(
            &place,
            decided,
            (query, &ends),
            choice.map(|choice| choice.rule),
        ))
    }

    /// Puts a decision into words.
    fn explanation(
        &self,
        place: &Place,
        decided: Decided,
        (query, ends): (&Query, &Ends),
        winner: Option<u16>,
    ) -> Explanation {
        let name = |id: u16| {
            let mut rules = self.redirect.rules.iter();
            rules.find_map(|(other, rule)| (*other == id).then(|| rule.to_string()))
        };
        let names: Vec<_> = if decided.ifindex == LOOPBACK_IFINDEX {
            vec!["lo"]
        } else {
            place.names.iter().map(String::as_str).collect()
        };
        let query = Query {
            on: Some(place.name.clone()),
            ..query.clone()
        };
        let is_packet = decided.method != Method::Functions;
        let behind = self.behind(place, &decided, ends);
        let ToTargets { end, targets } = decided.to_targets.unwrap_or_default();
        Explanation {
            schema: SCHEMA,
            flow: query.to_string(),
            assumed: place.assumed.clone(),
            interface: Some(place.name.clone()),
            engine: place.engine.clone(),
            hook: place.way.hook().map(str::to_owned),
            program: place.way.program().map(str::to_owned),
            method: decided.method,
            verdict: verdict(decided.reason),
            reason: decided.reason.label(),
            why: decided
                .why
                .unwrap_or_else(|| decided.reason.text().to_owned()),
            rule: decided.rule.and_then(name),
            port: decided.port.get(),
            target: end.map(|(addr, port)| super::query::end(addr, port.get())),
            targets,
            before: is_packet.then(|| ends.packet()),
            after: decided.after.map(|after| after.packet()),
            rules: judge(&self.redirect.rules, ends, &names, winner),
            known_flow: query
                .client_port
                .and_then(|_| self.known_flow(ends, decided.port)),
            behind,
        }
    }

    /// Everything behind the program of a place.
    fn behind(&self, place: &Place, decided: &Decided, ends: &Ends) -> Behind {
        let fate = match (decided.method, &decided.after) {
            (_, after) if self.leaves(decided, after.as_ref()) => Fate::Forwarded,
            (Method::TestRun, None) => Fate::Ended,
            _ => Fate::GoesOn,
        };
        let behind = Behind::of(&self.rulesets, place, &decided.after.unwrap_or(*ends), fate);
        if fate == Fate::Forwarded {
            let end = decided.to_targets.as_ref().and_then(|to| to.end);
            return match end {
                Some(end) => behind.with_way(&self.redirect.host, end),
                None => behind,
            };
        }
        if fate != Fate::GoesOn || decided.reason == Reason::Hidden {
            return behind;
        }
        let (protocol, addr, port) = (ends.protocol, ends.dst.0, decided.port);
        if !self.rules.is_local(&Addr::from(addr), decided.ifindex) {
            return behind.without_servers("the destination is not this host");
        }
        let mut rules = self.redirect.rules.iter();
        let is_known = rules.any(|(_, rule)| {
            let is_its = rule.ports.contains(port) || rule.is_own_target(port);
            is_its && rule.protocols.each().contains(&protocol)
        });
        if is_known {
            return behind.with_servers(&self.servers, place, (protocol, addr, port));
        }
        match Listeners::of_port(protocol, port) {
            Ok(servers) => behind.with_servers(&servers, place, (protocol, addr, port)),
            Err(error) => behind.without_servers(&error.to_string()),
        }
    }

    /// Whether a flow goes to a target that is not this host.
    fn leaves(&self, decided: &Decided, after: Option<&Ends>) -> bool {
        let Some(to_targets) = &decided.to_targets else {
            return false;
        };
        let end = to_targets.end.or(after.map(|after| after.dst));
        decided.reason == Reason::Redirected
            && end.is_none_or(|(addr, _)| !self.is_own(Addr::from(addr)))
    }

    /// The flow that the tables have for these ends, behind a port or a target of earlier
    /// rules.
    fn known_flow(&self, ends: &Ends, port: Port) -> Option<String> {
        if let Some(known) = self.known_forward(ends) {
            return Some(known);
        }
        let index = PortEntry::index(ends.protocol, ends.dst.1);
        let entry = self.rules.port(ends.protocol, ends.dst.1);
        let previous = self.rules.previous_targets(entry, index);
        let previous = (0..PreviousTargets::COUNT).map_while(|i| previous.target(i));
        let mut ports = [port].into_iter().chain(previous);
        ports.find_map(|local_port| {
            let key = FlowKey {
                local_port,
                ..key(ends)
            };
            let (_, flow) = self.redirect.live.flow(ends.protocol, &key)?;
            let (dst, target) = (flow.dst_port.get(), local_port.get());
            Some(if flow.dst_port == ends.dst.1 {
                format!("known: its packets go on to port {target}")
            } else {
                format!("a flow from this client port to port {dst} is known")
            })
        })
    }
}

const fn verdict(reason: Reason) -> &'static str {
    match reason {
        Reason::Redirected => "redirected",
        Reason::Hidden | Reason::NoListener => "refused",
        _ => match reason.verdict() {
            Verdict::Pass => "passed",
            Verdict::Drop => "dropped",
        },
    }
}

/// The destination address; a process reaches its own host by 0.0.0.0 and `::`.
const fn destination(query: &Query) -> IpAddr {
    match (query.client, query.addr) {
        (Client::Local, IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        (Client::Local, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        (_, addr) => addr,
    }
}
