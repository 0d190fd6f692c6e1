//! Flows to targets with an address, and connections whose server is elsewhere.

use std::net::IpAddr;

use portredir_common::flow::FlowKey;
use portredir_common::map::sockets::ForwardPeer;
use portredir_common::net::{Port, Protocol};

use super::list::{Lister, Servers, Way, ends, ip, is_for, new, of_socket, reversed};
use super::{Connection, ListError};
use crate::config::engine::Engine;
use crate::loader::flow_view::FlowView;
use crate::loader::forward_view::Forwarded;
use crate::rule::Rule;
use crate::sys::sock_detail::Socket;

impl Lister<'_> {
    /// Adds the flows; returns the number of UDP flows that cannot be listed.
    pub(super) fn forwarded(
        &mut self,
        view: &FlowView,
        servers: &Servers,
    ) -> Result<usize, ListError> {
        let (flows, unknown) = view.forwarded()?;
        for flow in flows {
            let way = Way {
                key: FlowKey {
                    local: flow.dst_addr,
                    ..flow.key
                },
                protocol: flow.protocol,
                dst_port: flow.dst_port,
                target: flow.key.local_port,
            };
            // A port of this host may be one of several targets.
            let server = servers.get(&ends(&flow.key));
            let known = match server {
                Some(server) => of_socket(way, server.state, server.traffic),
                None => Connection {
                    state: state(&flow),
                    ..new(way)
                },
            };
            if !self.filter.wants_state(known.state) {
                continue;
            }
            let inode = server.map_or(0, |server| server.inode);
            let connection = Connection {
                client_port: flow.client_port.map(Port::get),
                target_addr: target_addr(&flow),
                rule: flow.rule.and_then(|id| self.rule_of(id, way)),
                engines: self.rewriting.clone(),
                age_seconds: Some(flow.age.as_secs()),
                idle_seconds: Some(flow.idle.as_secs()),
                ..known
            };
            self.push(connection, inode);
        }
        Ok(unknown)
    }

    /// Adds the connection of a client on this host to a target. The server is the other
    /// socket, if that is in this network namespace too.
    pub(super) fn dialled_target(
        &mut self,
        (socket, peer): (&Socket, &ForwardPeer),
        rule: Option<u16>,
        servers: &Servers,
    ) {
        let client = &socket.key;
        let key = FlowKey {
            client: client.local,
            local: client.client,
            client_port: client.local_port,
            local_port: client.client_port,
            ..*client
        };
        let way = Way {
            key: FlowKey {
                local: peer.dialled,
                ..key
            },
            protocol: Protocol::Tcp,
            dst_port: peer.dst_port,
            target: peer.port,
        };
        let server = servers.get(&ends(&key));
        let (state, traffic, inode) = match server {
            Some(server) => (server.state, server.traffic, server.inode),
            None => (socket.state, socket.traffic.map(reversed), 0),
        };
        let connection = Connection {
            target_addr: (!peer.addr.is(peer.dialled)).then(|| ip(peer.addr)),
            rule: rule.and_then(|id| self.rule_of(id, way)),
            engines: vec![Engine::Cgroup.name().to_owned()],
            ..of_socket(way, state, traffic)
        };
        self.push(connection, inode);
    }

    /// The text of a rule by its number. A rule that has got other targets since is the rule
    /// of its flows.
    fn rule_of(&self, id: u16, way: Way) -> Option<String> {
        let rule: &&Rule = self.rules.get(&id)?;
        let is_its = rule.protocols.each().contains(&way.protocol)
            && rule.redirects(way.dst_port)
            && is_for(rule, way);
        is_its.then(|| rule.to_string())
    }
}

/// The state of a connection that a handshake has made, until an end of one side is seen:
/// what becomes of it then, the sockets of other hosts know.
fn state(flow: &Forwarded) -> Option<&'static str> {
    let is_open = flow.protocol == Protocol::Tcp && !flow.is_ending;
    is_open.then(|| crate::sys::sock_detail::TcpState::Established.name())
}

/// The address of the target, where the packets have another one than the client sent to.
fn target_addr(flow: &Forwarded) -> Option<IpAddr> {
    (!flow.key.local.is(flow.dst_addr)).then(|| ip(flow.key.local))
}
