//! The paths, and what is right on them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::site::Place;
use crate::lab::Family;
use crate::peer::whoami::Answer;

/// Somebody dials port 80 somewhere.
#[derive(Debug)]
pub struct Path {
    pub from: Place,
    /// What is dialled, in words.
    pub dials: &'static str,
    /// The same as an address of each IP version that knows it.
    v4: Option<&'static str>,
    v6: Option<&'static str>,
    /// Whose server answers: the host's listens on 8080, others on 80.
    pub server: Place,
    /// Whether netfilter's hooks for IP run for what crosses a bridge.
    pub has_br_netfilter: bool,
}

const fn path(
    from: Place,
    dials: &'static str,
    v4: Option<&'static str>,
    v6: Option<&'static str>,
    server: Place,
) -> Path {
    Path {
        from,
        dials,
        v4,
        v6,
        server,
        has_br_netfilter: false,
    }
}

const fn br_netfilter(
    from: Place,
    dials: &'static str,
    v4: Option<&'static str>,
    v6: Option<&'static str>,
    server: Place,
) -> Path {
    Path {
        has_br_netfilter: true,
        ..path(from, dials, v4, v6, server)
    }
}

/// All of them, in the order of the tables.
#[rustfmt::skip]
pub const PATHS: [Path; 19] = {
    use Place::{A, B, Client1, Client2, Host};
    [
        path(Client1, "the host, on interface 1", Some("10.9.1.1"), Some("fd09:0:0:1::1"), Host),
        path(Client2, "the host, on interface 2", Some("10.9.2.1"), Some("fd09:0:0:2::1"), Host),
        path(Client1, "the host's second address there", Some("10.9.1.11"), Some("fd09:0:0:1::11"), Host),
        path(Client1, "the host's address on interface 2", Some("10.9.2.1"), Some("fd09:0:0:2::1"), Host),
        path(Client1, "the host's link-local address", None, Some("fe80::1%c0"), Host),
        path(Host, "its own address", Some("10.9.1.1"), Some("fd09:0:0:1::1"), Host),
        path(Host, "`127.0.0.1`, `::1`", Some("127.0.0.1"), Some("::1"), Host),
        path(Host, "`127.5.5.5`", Some("127.5.5.5"), None, Host),
        path(Host, "`0.0.0.0`, `::` (itself)", Some("0.0.0.0"), Some("::"), Host),
        path(Host, "`::ffff:127.0.0.1`", None, Some("::ffff:127.0.0.1"), Host),
        path(Host, "its own link-local address", None, Some("fe80::1%h0"), Host),
        path(A, "the host's bridge address, its gateway", Some("10.9.3.1"), Some("fd09:0:0:3::1"), Host),
        path(A, "the host's outer address", Some("10.9.1.1"), Some("fd09:0:0:1::1"), Host),
        path(A, "container B", Some("10.9.3.3"), Some("fd09:0:0:3::3"), B),
        br_netfilter(A, "the host's bridge address, `br_netfilter` on", Some("10.9.3.1"), Some("fd09:0:0:3::1"), Host),
        br_netfilter(A, "container B, `br_netfilter` on", Some("10.9.3.3"), Some("fd09:0:0:3::3"), B),
        path(B, "itself, at `127.0.0.1`, `::1`", Some("127.0.0.1"), Some("::1"), B),
        path(Client1, "client 2, routed through the host", Some("10.9.2.2"), Some("fd09:0:0:2::2"), Client2),
        path(Host, "client 2", Some("10.9.2.2"), Some("fd09:0:0:2::2"), Client2),
    ]
};

impl Path {
    /// What its cells have to say.
    pub const fn right(&self) -> &'static str {
        match self.server {
            Place::Host => "8080 ✓",
            _ => "untouched",
        }
    }

    /// The address to dial, if there is one.
    pub const fn addr(&self, family: Family) -> Option<&'static str> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// What a cell says about what one client was answered.
    pub fn cell(&self, addr: &str, answers: &[Result<Answer, String>], is_invalid: bool) -> String {
        let mut faults = Vec::new();
        let mut ports = Vec::new();
        for answer in answers.iter().flatten() {
            ports.push(answer.local().port());
            faults.extend(self.faults(addr, answer));
        }
        faults.dedup();
        if faults.is_empty() {
            // Else they tell why something else did not arrive.
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

    /// What is wrong with an answer.
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
        if answer.peer().ip() != answer.client().ip() {
            faults.push(format!("client seen as {}", answer.peer().ip()));
        } else if answer.peer() != answer.client() {
            faults.push("client port replaced".into());
        }
        faults
    }
}

/// Where a reply has to come from.
fn destination(addr: &str) -> SocketAddr {
    let addr = addr.split('%').next().expect("an address");
    let addr: IpAddr = addr.parse().expect("an address");
    let addr = match addr {
        // To connect to no address is to connect to oneself
        // (`ip_route_output_key_hash_rcu`, `tcp_v6_connect`).
        IpAddr::V4(addr) if addr.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(addr) if addr.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        addr => addr.to_canonical(),
    };
    SocketAddr::new(addr, 80)
}
