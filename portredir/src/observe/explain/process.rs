//! The flows of one process: its listening sockets and its connections.

use std::net::IpAddr;

use portredir_common::net::{Addr, Port, Protocol};
use serde::Serialize;

use super::error::ExplainError;
use super::explainer::Explainer;
use super::explanation::{Explanation, SCHEMA};
use super::query::{Client, Query};
use crate::observe::listening::name_of;
use crate::sys::{process, sock_diag};

/// The sockets of one process: the object that `explain --pid PID --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct OfProcess {
    /// The version of this layout.
    pub schema: u32,
    /// The ID of the process.
    pub pid: u32,
    /// The sockets that wait for clients.
    pub listening: Vec<Serving>,
    /// The connections of clients to ports of rules.
    pub flows: Vec<Explanation>,
    /// Everything that was not evaluated, and why.
    pub not_evaluated: Vec<String>,
}

/// A socket that waits for clients.
#[derive(Clone, Debug, Serialize)]
pub struct Serving {
    /// The protocol, `tcp` or `udp`.
    pub protocol: &'static str,
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// The rules that lead to the port.
    pub rules: Vec<String>,
    /// The rules that take clients of the port away.
    pub taken_by: Vec<String>,
}

impl Explainer {
    /// Explains the flows of a process.
    ///
    /// # Errors
    ///
    /// [`ExplainError`].
    pub fn of_process(&mut self, pid: u32) -> Result<OfProcess, ExplainError> {
        let inodes = process::sockets(pid).ok_or(ExplainError::NoProcess(pid))?;
        let mut listening = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let servers = sock_diag::servers(protocol)?;
            let own = servers
                .iter()
                .filter(|server| inodes.contains(&server.inode));
            listening.extend(own.map(|server| self.serving(protocol, server.addr, server.port)));
        }
        let connections = sock_diag::connections()?;
        let own = connections
            .iter()
            .filter(|(inode, _)| inodes.contains(inode));
        let keys: Vec<_> = own.map(|(_, socket)| socket.key).collect();
        let mut flows = Vec::new();
        let mut dialled = 0;
        for key in keys {
            let known = self.redirect.live.flow(Protocol::Tcp, &key);
            let is_rule = self
                .rules
                .port(Protocol::Tcp, key.local_port)
                .is_dst_or_target();
            // The other end of a connection that this process itself began.
            let is_client = listening
                .iter()
                .all(|serving| serving.port != key.local_port.get());
            if !is_rule || is_client {
                let to = self.rules.port(Protocol::Tcp, key.client_port);
                dialled += usize::from(to.is_target() && self.is_own(key.client));
                continue;
            }
            let port = known.map_or(key.local_port, |(_, flow)| flow.dst_port);
            let client_port = known.map_or(key.client_port, |(_, flow)| flow.client_port);
            flows.push(self.explain(&Query {
                protocol: Protocol::Tcp,
                client: Client::At(ip(key.client)),
                client_port: Some(client_port),
                addr: ip(key.local),
                port,
                on: None,
            })?);
        }
        let mut not_evaluated = vec!["clients of UDP sockets".to_owned()];
        if dialled > 0 {
            not_evaluated.push(format!(
                "{dialled} connections to target ports of this host: the port that the process \
                 named is kept at its socket"
            ));
        }
        Ok(OfProcess {
            schema: SCHEMA,
            pid,
            listening,
            flows,
            not_evaluated,
        })
    }

    fn serving(&self, protocol: Protocol, addr: IpAddr, port: Port) -> Serving {
        let rules = self.redirect.rules.iter().map(|(_, rule)| rule);
        let rules = rules.filter(|rule| rule.protocols.each().contains(&protocol));
        let (to, from): (Vec<_>, Vec<_>) = (
            rules
                .clone()
                .filter(|rule| rule.is_own_target(port))
                .collect(),
            rules.filter(|rule| rule.redirects(port)).collect(),
        );
        Serving {
            protocol: name_of(protocol),
            addr,
            port: port.get(),
            rules: to.into_iter().map(ToString::to_string).collect(),
            taken_by: from.into_iter().map(ToString::to_string).collect(),
        }
    }
}

/// An address in the form that people know.
fn ip(addr: Addr) -> IpAddr {
    IpAddr::from(addr.octets()).to_canonical()
}
