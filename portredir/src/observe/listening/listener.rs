//! The listening sockets of a host, by port.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use nix::net::if_::if_indextoname;
use nix::unistd::{Uid, User};
use portredir_common::net::{Port, Protocol, Version};
use serde::Serialize;

use crate::host::packet_filter::ruleset::name_of;
use crate::rule::{Ports, Rule};
use crate::sys::process::{self, Process};
use crate::sys::sock_diag::{self, Server, SockDiagError};

/// The sockets of one place, which share it by `SO_REUSEPORT`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// The protocol, `tcp` or `udp`.
    pub protocol: &'static str,
    /// The address; `0.0.0.0` or `::` for all.
    pub addr: IpAddr,
    /// Whether IPv4 clients reach it.
    pub ipv4: bool,
    /// Whether IPv6 clients reach it.
    pub ipv6: bool,
    /// The interface that the sockets are bound to.
    pub device: Option<String>,
    /// The processes that hold the sockets, as far as this user may know them.
    pub processes: Vec<Process>,
    /// The user who opened a socket whose process is unknown.
    pub user: Option<String>,
}

impl Listener {
    /// Whether no other host can reach the sockets.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.addr.is_loopback() || self.device.as_deref() == Some("lo")
    }

    /// Whether clients of an IP version reach it.
    #[must_use]
    pub const fn accepts(&self, version: Version) -> bool {
        match version {
            Version::V4 => self.ipv4,
            Version::V6 => self.ipv6,
        }
    }

    /// The address as it stands before a port.
    #[must_use]
    pub fn place(&self) -> String {
        let addr = match self.addr {
            IpAddr::V4(addr) => addr.to_string(),
            IpAddr::V6(addr) => format!("[{addr}]"),
        };
        match &self.device {
            Some(device) => format!("{addr}%{device}"),
            None => addr,
        }
    }

    /// The processes, as a subject.
    #[must_use]
    pub fn who(&self) -> String {
        match (self.processes.as_slice(), &self.user) {
            ([], Some(user)) => format!("a process of user {user}"),
            ([], None) => "a process".to_owned(),
            ([one], _) => format!("{} (pid {})", one.name, one.pid),
            ([first, rest @ ..], _) => {
                format!("{} (pid {} and {} more)", first.name, first.pid, rest.len())
            }
        }
    }
}

/// A range of one port.
pub const fn ports(port: u16) -> Ports {
    Ports {
        first: port,
        last: port,
    }
}

/// The listening sockets of a host.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    /// The listeners of each port, TCP and UDP apart.
    by_port: [BTreeMap<u16, Vec<Listener>>; 2],
}

impl Listeners {
    /// Lists the sockets that matter for some rules: those on their ports.
    ///
    /// # Errors
    ///
    /// [`SockDiagError`].
    pub fn read(rules: &[Rule]) -> Result<Self, SockDiagError> {
        let mut servers = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let of = rules
                .iter()
                .filter(|rule| rule.protocols.each().contains(&protocol));
            let wanted = ports_of(of);
            if wanted.iter().any(|wanted| *wanted) {
                let all = sock_diag::servers(protocol)?;
                servers.extend(
                    all.into_iter()
                        .filter(|s| wanted[usize::from(s.port.get())]),
                );
            }
        }
        let sockets: HashSet<_> = servers.iter().map(|server| server.inode).collect();
        Ok(Self::new(&servers, &process::holders(sockets)))
    }

    /// Lists the sockets of one port.
    ///
    /// # Errors
    ///
    /// [`SockDiagError`].
    pub fn of_port(protocol: Protocol, port: Port) -> Result<Self, SockDiagError> {
        let mut servers = sock_diag::servers(protocol)?;
        servers.retain(|server| server.port == port);
        let sockets: HashSet<_> = servers.iter().map(|server| server.inode).collect();
        Ok(Self::new(&servers, &process::holders(sockets)))
    }

    /// Sorts sockets by port; those that share a place are one listener.
    pub(super) fn new(servers: &[Server], holders: &HashMap<u32, Process>) -> Self {
        let mut listeners = Self::default();
        for server in servers {
            let mut new = listener(server);
            new.processes.extend(holders.get(&server.inode).cloned());
            if new.processes.is_empty() {
                let uid = Uid::from_raw(server.uid);
                let user = User::from_uid(uid).ok().flatten();
                new.user = Some(user.map_or_else(|| uid.to_string(), |user| user.name));
            }
            let here = listeners.by_port[place(server.protocol)].entry(new.port);
            let here = here.or_default();
            let key = |l: &Listener| (l.addr, l.ipv4, l.device.clone());
            match here.iter_mut().find(|other| key(other) == key(&new)) {
                Some(shared) => shared.share(new),
                None => here.push(new),
            }
        }
        for here in listeners.by_port.iter_mut().flat_map(BTreeMap::values_mut) {
            here.sort();
        }
        listeners
    }

    /// The listeners in a range, by port.
    pub fn within(
        &self,
        protocol: Protocol,
        ports: Ports,
    ) -> impl Iterator<Item = (u16, &[Listener])> {
        let all = self.by_port[place(protocol)].range(ports.first..=ports.last);
        all.map(|(port, listeners)| (*port, listeners.as_slice()))
    }
}

impl Listener {
    /// Adds the sockets of another listener of this place.
    fn share(&mut self, other: Self) {
        self.processes.extend(other.processes);
        self.processes.sort();
        self.processes.dedup();
        self.user = self.user.take().or(other.user);
    }
}

/// The place of a protocol in arrays.
pub const fn place(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
    }
}

fn listener(server: &Server) -> Listener {
    let is_dual = server.addr.is_ipv6() && server.addr.is_unspecified() && !server.is_v6_only;
    let device = if_indextoname(server.device);
    Listener {
        port: server.port.get(),
        protocol: name_of(server.protocol),
        addr: server.addr,
        ipv4: server.addr.is_ipv4() || is_dual,
        ipv6: server.addr.is_ipv6(),
        device: (server.device != 0).then(|| match device {
            Ok(name) => name.to_string_lossy().into_owned(),
            Err(_) => format!("if{}", server.device),
        }),
        processes: Vec::new(),
        user: None,
    }
}

/// The destination ports of rules, and their target ports on this host.
fn ports_of<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<bool> {
    marked(rules.flat_map(|rule| std::iter::once(rule.ports).chain(rule.own_targets())))
}

/// A list of all ports, in which those of some ranges are marked.
pub fn marked(ranges: impl Iterator<Item = Ports>) -> Vec<bool> {
    // Where a range begins and where it has ended: rules can have many long ranges.
    let mut steps = vec![0_i32; 1 + usize::from(u16::MAX) + 1];
    for range in ranges {
        steps[usize::from(range.first)] += 1;
        steps[usize::from(range.last) + 1] -= 1;
    }
    let depths = steps.iter().scan(0, |depth, step| {
        *depth += step;
        Some(*depth > 0)
    });
    depths.collect()
}
