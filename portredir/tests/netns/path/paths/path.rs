//! The paths, and the correct outcome on each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::site::Place;
use crate::lab::Family;
use crate::peer::whoami::Answer;

/// A client at one place that connects to port 80 at another.
#[derive(Debug)]
pub struct Path {
    pub from: Place,
    /// The client's port; 0 for any.
    pub from_port: u16,
    /// The destination, in words.
    pub to: &'static str,
    /// The destination as an address of IPv4 and of IPv6, where there is one.
    addrs: [Option<&'static str>; 2],
    /// The place of the server that answers: the host's server listens on 8080, others
    /// on 80.
    pub server: Place,
    pub setting: Setting,
}

/// A special condition of the host while a path is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Plain,
    /// Netfilter's hooks for IP run for what crosses a bridge.
    BrNetfilter,
    /// The host gives packets of containers its own address.
    Masquerade,
    /// The link to client 1 was down just now.
    LinkFlap,
}

const fn path(
    from: Place,
    to: &'static str,
    addrs: [Option<&'static str>; 2],
    server: Place,
) -> Path {
    Path {
        from,
        from_port: 0,
        to,
        addrs,
        server,
        setting: Setting::Plain,
    }
}

/// All paths, in the order of the tables.
#[rustfmt::skip]
pub const PATHS: [Path; 24] = {
    use Place::{A, B, Client1, Client2, Host};
    [
        path(Client1, "the host, on interface 1", [Some("10.9.1.1"), Some("fd09:0:0:1::1")], Host),
        path(Client2, "the host, on interface 2", [Some("10.9.2.1"), Some("fd09:0:0:2::1")], Host),
        path(Client1, "the host's second address there", [Some("10.9.1.11"), Some("fd09:0:0:1::11")], Host),
        path(Client1, "the host's address on interface 2", [Some("10.9.2.1"), Some("fd09:0:0:2::1")], Host),
        path(Client1, "the host's link-local address", [None, Some("fe80::1%c0")], Host),
        path(Host, "its own address", [Some("10.9.1.1"), Some("fd09:0:0:1::1")], Host),
        path(Host, "`127.0.0.1`, `::1`", [Some("127.0.0.1"), Some("::1")], Host),
        path(Host, "`127.5.5.5`", [Some("127.5.5.5"), None], Host),
        path(Host, "`0.0.0.0`, `::` (itself)", [Some("0.0.0.0"), Some("::")], Host),
        path(Host, "`::ffff:127.0.0.1`", [None, Some("::ffff:127.0.0.1")], Host),
        path(Host, "its own link-local address", [None, Some("fe80::1%h0")], Host),
        path(A, "the host's bridge address, its gateway", [Some("10.9.3.1"), Some("fd09:0:0:3::1")], Host),
        path(A, "the host's outer address", [Some("10.9.1.1"), Some("fd09:0:0:1::1")], Host),
        path(A, "container B", [Some("10.9.3.3"), Some("fd09:0:0:3::3")], B),
        path(A, "the host's bridge address, `br_netfilter` on", [Some("10.9.3.1"), Some("fd09:0:0:3::1")], Host).with(Setting::BrNetfilter),
        path(A, "container B, `br_netfilter` on", [Some("10.9.3.3"), Some("fd09:0:0:3::3")], B).with(Setting::BrNetfilter),
        path(B, "itself, at `127.0.0.1`, `::1`", [Some("127.0.0.1"), Some("::1")], B),
        path(Client1, "client 2, routed through the host", [Some("10.9.2.2"), Some("fd09:0:0:2::2")], Client2),
        path(Client1, "the host's address on `lo`; replies leave by interface 3", [Some("10.9.5.1"), Some("fd09:0:0:5::1")], Host),
        path(Client1, "an address that the host has by a route of type `local`", [Some("10.9.7.7"), None], Host),
        path(Host, "client 2", [Some("10.9.2.2"), Some("fd09:0:0:2::2")], Client2),
        path(Host, "client 2, from port 80", [Some("10.9.2.2"), Some("fd09:0:0:2::2")], Client2).with_port_80(),
        path(A, "client 2, from port 80, behind the host's masquerade", [Some("10.9.2.12"), Some("fd09:0:0:2::12")], Client2).with_port_80().with(Setting::Masquerade),
        path(Client1, "the host, on interface 1, right after its link was down for 200 ms", [Some("10.9.1.1"), Some("fd09:0:0:1::1")], Host).with(Setting::LinkFlap),
    ]
};

impl Path {
    const fn with(self, setting: Setting) -> Self {
        Self { setting, ..self }
    }

    /// This path, where the client's port is that of the rule.
    const fn with_port_80(self) -> Self {
        Self {
            from_port: 80,
            ..self
        }
    }

    /// The text of a correct cell.
    pub const fn right(&self) -> &'static str {
        match self.server {
            Place::Host => "8080 ✓",
            _ => "untouched",
        }
    }

    /// The destination address, if there is one.
    pub const fn addr(&self, family: Family) -> Option<&'static str> {
        match family {
            Family::V4 => self.addrs[0],
            Family::V6 => self.addrs[1],
        }
    }

    /// The text of a cell about the answers that one client got.
    pub fn cell(&self, addr: &str, answers: &[Result<Answer, String>], is_invalid: bool) -> String {
        let mut faults = Vec::new();
        let mut ports = Vec::new();
        for answer in answers.iter().flatten() {
            ports.push(answer.local().port());
            faults.extend(self.faults(addr, answer));
        }
        faults.dedup();
        if faults.is_empty() {
            // Errors beside faults only tell why another reply did not arrive.
            let errors = answers.iter().filter_map(|answer| answer.as_ref().err());
            faults.extend(errors.take(1).cloned());
        }
        if is_invalid {
            faults.push("INVALID > 0".into());
        }
        ports.dedup();
        let port = ports.iter().map(u16::to_string).collect::<Vec<_>>();
        match (&port[..], &faults[..]) {
            (_, []) if self.server != Place::Host => "untouched".into(),
            (port, []) => format!("{} ✓", port.join(" or ")),
            ([], faults) => faults.join(", "),
            (port, faults) => format!("{}, {}", port.join(" or "), faults.join(", ")),
        }
    }

    /// The ways in which an answer is not correct.
    fn faults(&self, addr: &str, answer: &Answer) -> Vec<String> {
        let mut faults = Vec::new();
        if answer.server != self.server.name() {
            faults.push(format!("reached {}", answer.server));
        }
        let destination = destination(addr);
        if answer.reply() != destination {
            faults.push(match answer.reply().ip() == destination.ip() {
                true => format!("reply from {}", answer.reply().port()),
                false => format!("reply from {}", answer.reply()),
            });
        }
        if answer.local().ip() != destination.ip() {
            faults.push(format!("server saw {}", answer.local().ip()));
        }
        if self.server != Place::Host && answer.local().port() != 80 {
            faults.push(format!("at {}", answer.local().port()));
        }
        let client = self.client(answer);
        if answer.peer().ip() != client.ip() {
            faults.push(format!("client seen as {}", answer.peer().ip()));
        } else if answer.peer() != client {
            faults.push("client port replaced".into());
        }
        faults
    }

    /// The address and port that the server has to see of the client. Netfilter keeps the
    /// port of a masqueraded client.
    fn client(&self, answer: &Answer) -> SocketAddr {
        let client = answer.client();
        let family = match client {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        };
        match self.setting {
            Setting::Masquerade => SocketAddr::new(family.addr(2, 1), client.port()),
            _ => client,
        }
    }
}

/// The address and port from which a reply has to come.
fn destination(addr: &str) -> SocketAddr {
    let addr = addr.split('%').next().expect("an address");
    let addr: IpAddr = addr.parse().expect("an address");
    let addr = match addr {
        // A connection to the unspecified address reaches the host itself
        // (`ip_route_output_key_hash_rcu`, `tcp_v6_connect`).
        IpAddr::V4(addr) if addr.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(addr) if addr.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        addr => addr.to_canonical(),
    };
    SocketAddr::new(addr, 80)
}
