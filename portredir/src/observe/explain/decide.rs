//! The decision about a flow, by the program of its place.

use portredir_common::flow::FlowKey;
use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol, Version};
use portredir_common::verdict::{Reason, Verdict};

use super::behind::program_ids;
use super::error::ExplainError;
use super::explainer::Explainer;
use super::explanation::Method;
use super::packet::Ends;
use super::place::{Place, Way};
use super::query::Query;
use super::sockets::{Decision, Lookup, Sockets, choose};
use super::target::ToTargets;
use crate::loader::trial::{Arrival, Trial};
use crate::sys::sock_diag::{self, Kind};

/// The decision about a flow.
pub(super) struct Decided {
    pub(super) method: Method,
    /// The interface by which rules know the flow.
    pub(super) ifindex: u32,
    pub(super) reason: Reason,
    pub(super) why: Option<String>,
    pub(super) rule: Option<u16>,
    pub(super) port: Port,
    /// The packet that goes on; none where a socket is redirected.
    pub(super) after: Option<Ends>,
    /// The targets of the rule, where these have addresses or are several.
    pub(super) to_targets: Option<ToTargets>,
}

impl Decided {
    fn of_socket(decision: Decision, ifindex: u32) -> Self {
        let Decision {
            reason, rule, port, ..
        } = decision;
        Self {
            method: Method::Functions,
            ifindex,
            reason,
            why: None,
            rule,
            port,
            after: None,
            to_targets: None,
        }
    }

    /// Nothing is done.
    fn nothing(place: &Place, ends: &Ends, why: &str) -> Self {
        Self {
            method: Method::None,
            ifindex: place.ifindex,
            reason: Reason::NoRule,
            why: Some(why.to_owned()),
            rule: None,
            port: ends.dst.1,
            after: Some(*ends),
            to_targets: None,
        }
    }
}

impl Explainer {
    /// Lets the program of a place decide.
    pub(super) fn decide(
        &mut self,
        place: &Place,
        ends: &Ends,
        query: &Query,
    ) -> Result<Decided, ExplainError> {
        match &place.way {
            Way::Packets { program, .. } => self.run(place, program, ends),
            Way::Lookup { is_everywhere, .. } if ends.protocol == Protocol::Tcp => {
                Ok(self.look_up(place, *is_everywhere, ends))
            }
            Way::Clients { .. } => self.connect(ends, query),
            Way::Lookup { .. } => Ok(Decided::nothing(
                place,
                ends,
                "engine socket redirects TCP alone",
            )),
            Way::Nowhere { why } => Ok(Decided::nothing(place, ends, why)),
        }
    }

    /// Runs a copy of the program on the packet.
    fn run(&mut self, place: &Place, program: &str, ends: &Ends) -> Result<Decided, ExplainError> {
        let seed = self.rules.seed;
        // Another redirect may run meanwhile.
        if self
            .trial
            .as_ref()
            .is_none_or(|trial| !trial.has_seed(&seed))
        {
            self.trial = Some(Trial::load(seed)?);
            self.is_filled = false;
        }
        let trial = self.trial.as_mut().expect("it was loaded");
        if !self.is_filled {
            trial.fill(&self.rules)?;
            self.is_filled = true;
        }
        self.compared
            .entry(place.ifindex)
            .or_insert_with(|| trial.is_copy(program, &program_ids(place.ifindex)));
        let choice = choose(&self.rules, &key(ends), place.ifindex);
        let frame = ends.frame(place.link);
        let left = trial.run(&Arrival {
            program,
            ifindex: place.ifindex,
            frame: &frame,
            rule: choice.map(|choice| choice.rule),
        })?;
        let after = ends
            .ends_of(place.link, &left.frame)
            .ok_or(ExplainError::Unreadable)?;
        let is_dropped = left.verdict == Verdict::Drop;
        let is_redirected = left.reason == Reason::Redirected;
        let to_targets = choice
            .filter(|choice| choice.is_forward)
            .and_then(|choice| {
                let after = is_redirected.then_some(&after);
                self.targets_of_packet((choice, place.ifindex), (ends, after))
            });
        Ok(Decided {
            method: Method::TestRun,
            ifindex: place.ifindex,
            reason: left.reason,
            why: None,
            rule: left.rule,
            port: after.dst.1,
            after: (!is_dropped).then_some(after),
            to_targets,
        })
    }

    /// Looks for the listener of a connection.
    fn look_up(&self, place: &Place, is_everywhere: bool, ends: &Ends) -> Decided {
        // The program takes a client with an address of this host for a local one.
        let is_own = self.is_own(Addr::from(ends.src.0)) || ends.dst.0.is_loopback();
        let ifindex = if is_own {
            LOOPBACK_IFINDEX
        } else {
            place.ifindex
        };
        let lookup = Lookup {
            interface: &place.name,
            is_everywhere,
            is_loopback_allowed: self.redirect.settings.allow_loopback_target,
        };
        let sockets = Sockets::new(
            (&self.rules, &self.redirect.live),
            (&self.servers, &[]),
            ifindex,
            lookup,
        );
        Decided::of_socket(sockets.listener(&key(ends)), ifindex)
    }

    /// Lets a process of this host connect.
    fn connect(&self, ends: &Ends, query: &Query) -> Result<Decided, ExplainError> {
        let own_port = query.client_port.unwrap_or(Port::CLOSED);
        let choice = choose(&self.rules, &key(ends), LOOPBACK_IFINDEX);
        let forward = choice.filter(|choice| choice.is_forward && self.is_own(ends.dst.0.into()));
        if let Some(decided) =
            forward.and_then(|choice| self.connect_to_targets((ends, own_port), choice))
        {
            return Ok(decided);
        }
        let connections: Vec<_> = if query.client_port.is_some() {
            let sockets = sock_diag::list(Kind::Connected)?;
            sockets.into_iter().map(|socket| socket.key).collect()
        } else {
            Vec::new()
        };
        let sockets = Sockets::new(
            (&self.rules, &self.redirect.live),
            (&self.servers, &connections),
            LOOPBACK_IFINDEX,
            Lookup::default(),
        );
        let decision = sockets.connect(ends.protocol, ends.dst, own_port);
        let decided = Decided::of_socket(decision, LOOPBACK_IFINDEX);
        let is_bound = query.client_port.is_some() && ends.protocol == Protocol::Tcp;
        Ok(match (decision.reason, choice) {
            (Reason::NoRule, Some(choice)) if is_bound => Decided {
                reason: Reason::Redirected,
                why: Some("its SYN is given to the listener on the target".to_owned()),
                rule: Some(choice.rule),
                port: choice.target,
                ..decided
            },
            _ => decided,
        })
    }
}

/// The flow as the client knows it.
pub(super) fn key(ends: &Ends) -> FlowKey {
    let version = if ends.dst.0.is_ipv4() {
        Version::V4
    } else {
        Version::V6
    };
    FlowKey {
        client: Addr::from(ends.src.0),
        local: Addr::from(ends.dst.0),
        client_port: ends.src.1,
        local_port: ends.dst.1,
        protocol: ends.protocol as u8,
        version: version as u8,
        pad: [0; 2],
    }
}
