//! The ends that targets with an address give to packets, and to peers of sockets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portredir_common::map::trace::{TraceHook, TracedSocket};
use portredir_common::net::{Port, Protocol};
use portredir_common::verdict::Reason;

use super::ports::End;
use crate::rule::{Forward, Rule};

/// Whether a rule leads from an end to another one; that one may be unknown where a rule has
/// several targets.
pub(super) fn leads(rule: &Rule, from: End, to: Option<End>) -> bool {
    let Some(dst_port) = from.port else {
        return false;
    };
    let Some(to) = to else {
        return rule.forward().is_some();
    };
    let is_end = |end: (IpAddr, Port)| end == (to.addr, to.port.unwrap_or(Port::CLOSED));
    to.port != Some(dst_port)
        && rule
            .target_of(dst_port)
            .is_some_and(|port| to.port == Some(port))
        || ends(rule, (from.addr, dst_port)).any(is_end)
}

/// The ends of the targets of a rule for a destination, where these have addresses or are
/// several.
fn ends(rule: &Rule, (dialled, dst_port): (IpAddr, Port)) -> impl Iterator<Item = (IpAddr, Port)> {
    let targets = rule.forward().into_iter().flat_map(Forward::all_targets);
    targets.map(move |target| {
        let port = target.ports.at(rule.ports, dst_port);
        (target.host.unwrap_or(dialled), port)
    })
}

/// An address in the form of an IPv6 one, as people write it.
pub(super) fn addr(octets: [u8; 16]) -> IpAddr {
    IpAddr::from(octets).to_canonical()
}

/// The peer of a socket after the hook. The record has its port alone, and the rules tell the
/// address, where all of them would give the same one.
pub(super) fn peer_after(rules: &[(u16, Rule)], socket: &TracedSocket) -> Option<End> {
    let (peer, port_after) = (addr(socket.peer.octets()), socket.port_after);
    let protocol = match socket.protocol {
        number if number == Protocol::Tcp as u8 => Protocol::Tcp,
        _ => Protocol::Udp,
    };
    let rules = rules.iter().map(|(_, rule)| rule);
    let rules = rules.filter(|rule| rule.protocols.each().contains(&protocol));
    let hook = usize::try_from(socket.head.hook).ok();
    let hook = hook.and_then(|hook| TraceHook::ALL.get(hook));
    let addrs: BTreeSet<Option<IpAddr>> = if socket.head.reason == Reason::Redirected as u32 {
        let rules = rules.filter(|rule| {
            let is_addr = rule.addr.is_none_or(|addr| addr == peer);
            is_addr && rule.redirects(socket.port)
        });
        let all = rules.flat_map(|rule| {
            let own = rule.target_of(socket.port).map(|port| (peer, port));
            own.into_iter().chain(ends(rule, (peer, socket.port)))
        });
        let its = all.filter(|(_, port)| *port == port_after);
        its.map(|(addr, _)| Some(addr)).collect()
    } else if matches!(hook, Some(TraceHook::Receive | TraceHook::PeerName))
        && socket.head.reason == Reason::Restored as u32
    {
        let rules = rules.filter(|rule| rule.redirects(port_after));
        let all = rules.flat_map(|rule| {
            let own = rule.target_of(port_after) == Some(socket.port);
            let is_it = |end: &(IpAddr, Port)| *end == (peer, socket.port);
            let there = ends(rule, (peer, port_after)).filter(is_it);
            let own = own.then_some(Some(peer));
            own.into_iter().chain(there.map(|_| rule.addr))
        });
        all.collect()
    } else {
        BTreeSet::new()
    };
    let mut addrs = addrs.into_iter();
    let addr = match (addrs.next(), addrs.next()) {
        // A rule that runs no more, or no change.
        (None, _) => peer,
        (Some(addr), None) => addr?,
        (Some(_), Some(_)) => return None,
    };
    Some(End {
        addr,
        port: Some(port_after),
    })
}

#[cfg(test)]
mod tests {
    use portredir_common::map::trace::TraceHead;
    use portredir_common::net::Addr;

    use super::*;
    use crate::rule::tests::rule;

    /// The peer of a socket after a hook, as text.
    fn after(rules: &[&str], hook: TraceHook, (peer, port_after): (&str, u16)) -> String {
        let peer: std::net::SocketAddr = peer.parse().expect("an end");
        let reason = match hook {
            TraceHook::Connect | TraceHook::Send => Reason::Redirected,
            _ => Reason::Restored,
        };
        let socket = TracedSocket {
            head: TraceHead {
                hook: hook as u32,
                reason: reason as u32,
                ..TraceHead::default()
            },
            client: Addr::default(),
            peer: Addr::from(peer.ip()),
            client_port: Port::CLOSED,
            port: Port::new(peer.port()),
            port_after: Port::new(port_after),
            protocol: Protocol::Tcp as u8,
            version: 4,
            comm: [0; 16],
        };
        let rules: Vec<_> = (0..).zip(rules.iter().map(|text| rule(text))).collect();
        let end = peer_after(&rules, &socket);
        end.map_or_else(|| "?".to_owned(), |end| end.to_string())
    }

    #[test]
    fn the_rules_tell_the_address_of_a_peer() {
        let one = "80:10.0.0.5:8080";
        let two = "81:10.0.0.5:8080,10.0.0.6:9090";
        let same = "82:10.0.0.5:8080,10.0.0.6:8080";
        let mixed = "83:8080,10.0.0.5:9090";
        let own = "84:8084";
        let rules = [one, two, same, mixed, own];
        for (peer, port, expected) in [
            ("127.0.0.1:80", 8080, "10.0.0.5:8080"),
            ("127.0.0.1:81", 8080, "10.0.0.5:8080"),
            ("127.0.0.1:81", 9090, "10.0.0.6:9090"),
            ("127.0.0.1:82", 8080, "?"),
            ("127.0.0.1:83", 8080, "127.0.0.1:8080"),
            ("127.0.0.1:83", 9090, "10.0.0.5:9090"),
            ("127.0.0.1:84", 8084, "127.0.0.1:8084"),
        ] {
            let after = after(&rules, TraceHook::Connect, (peer, port));
            assert_eq!(after, expected, "{peer} {port}");
        }
    }

    #[test]
    fn the_address_that_a_client_named_is_known_where_a_rule_has_it() {
        let bare = ["80:10.0.0.5:8080", "84:8084"];
        let named = ["192.0.2.1:80:10.0.0.5:8080"];
        let back = |rules, peer| after(rules, TraceHook::PeerName, peer);
        assert_eq!(back(&bare, ("10.0.0.5:8080", 80)), "?");
        assert_eq!(back(&named, ("10.0.0.5:8080", 80)), "192.0.2.1:80");
        assert_eq!(back(&bare, ("127.0.0.1:8084", 84)), "127.0.0.1:84");
    }

    #[test]
    fn a_rule_leads_to_the_ends_of_its_targets_alone() {
        let end = |text: &str| {
            let end: std::net::SocketAddr = text.parse().expect("an end");
            End {
                addr: end.ip(),
                port: Some(Port::new(end.port())),
            }
        };
        let ranges = rule("8000-8010:10.0.0.5:9000-9010");
        let from = end("192.0.2.1:8003");
        assert!(leads(&ranges, from, Some(end("10.0.0.5:9003"))));
        assert!(!leads(&ranges, from, Some(end("10.0.0.5:9004"))));
        assert!(!leads(&ranges, from, Some(end("192.0.2.1:9003"))));
        assert!(leads(&ranges, from, None));
        let own = rule("80:8080");
        let from = end("192.0.2.1:80");
        assert!(leads(&own, from, Some(end("192.0.2.1:8080"))));
        assert!(!leads(&own, from, None));
    }
}
