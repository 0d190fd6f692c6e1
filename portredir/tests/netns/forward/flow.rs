//! Flows that meet in one, targets that are not behind the host, and clients on the host
//! itself and behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::case::{Case, own, shared};
use super::packet::Reader;
use super::probe::Probe;
use super::rules::{Rule, any_port};
use super::site::Site;
use super::subject::{Layout, Place};
use super::talk::{goes_on, name, reach, talk_both, told};
use crate::conformance::client::Conversation;
use crate::conformance::frame::{Ip, SYN};
use crate::conformance::observe::{Observation, failure};
use crate::lab::Family;
use crate::peer::conn::{Conn, PROTOS, Proto};

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    shared(24, "one_port_two_rules", "one client port to 80 and to 81, which lead to one target", |site, family| pair(site, [site.own(family, 80), site.own(family, 81)])),
    shared(25, "one_port_direct_first", "one client port to the target itself, then to 80", |site, family| pair(site, [target(site, family), site.own(family, 80)])),
    shared(51, "one_port_direct_second", "one client port to 80, then to the target itself", |site, family| pair(site, [site.own(family, 80), target(site, family)])),
    shared(28, "one_arm", "to 88, whose target is in the client's segment: every packet that comes back to the client", one_arm),
    shared(29, "inside_client", "G connects to 80, which leads to F", |site, family| talk_both(site, &site.g, site.own(family, 80))),
    shared(30, "inside_itself", "F connects to 80, which leads to F itself", inside_itself),
    own(52, "same_bridge", "G connects to 80, which leads to F on the same bridge, without br_netfilter", (Layout::Bridge(false), same_bridge)),
    shared(31, "local_client", "the host connects to 80 of its own address", local_client),
    shared(32, "local_loopback", "the host connects to a loopback address, without `route_localnet`; from any address, and bound to that one", local_loopback),
    shared(33, "spoofed", "SYN to 80 from the target's address; from the destination address", spoofed),
];

fn target(site: &Site, family: Family) -> SocketAddr {
    SocketAddr::new(site.addr(Place::F, family), 8080)
}

/// Two conversations from one client port, for each protocol.
fn pair(site: &Site, to: [SocketAddr; 2]) -> Observation {
    let mut all = Observation::default();
    for proto in PROTOS {
        let port = site.port();
        let begin = |to| Conversation::begin(&site.lab.client, proto, port, to);
        let mut begun = to.map(begin);
        let mut seen = Observation::default();
        for (order, conversation) in ["first", "second"].into_iter().zip(&mut begun) {
            let facts = match conversation {
                Ok(conversation) => told(site, conversation),
                Err(error) => Observation::of(failure(error)),
            };
            seen = seen.with(order, &facts);
        }
        if let [Ok(first), _] = &mut begun {
            seen = seen.and(format!("the first {}", goes_on(first)));
        }
        for conversation in begun.into_iter().flatten() {
            // TCP frees the port at once then.
            if proto == Proto::Tcp {
                conversation.conn.reset();
            }
        }
        all = all.with(name(proto), &seen);
    }
    all
}

fn one_arm(site: &Site, family: Family) -> Observation {
    site.forget();
    let (client, port) = (&site.lab.client, site.port());
    // Of the first SYN the host may tell no redirect; the client repeats it after 1 s.
    let limit = Duration::from_millis(1500);
    let to = site.own(family, 88);
    let conn = Conn::connect_within(limit, client, Proto::Tcp, (port, to));
    let outcome = conn.map_or_else(|error| failure(&error), |_| "connected");
    let mut seen: Vec<String> = Vec::new();
    while let Some(received) = site.wire(Place::Client).receive(Duration::from_millis(5)) {
        let sight = Reader { site, port }.read(&received);
        let words = sight.map(|sight| sight.words);
        seen.extend(words.filter(|words| !seen.contains(words)));
    }
    Observation::of(outcome).with("client", &seen.into_iter().collect())
}

/// The packet comes back to F from F's own address, which no host accepts: only another
/// source address would help.
fn inside_itself(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for proto in PROTOS {
        let seen = reach(site, &site.f, proto, (None, site.own(family, 80)));
        all = all.with(name(proto), &seen);
    }
    all
}

fn same_bridge(site: &mut Site, family: Family) -> Observation {
    let rule = Rule::new(site.own(family, 80), &[target(site, family)]);
    site.up(&[rule]);
    let mut all = Observation::default();
    for proto in PROTOS {
        let seen = reach(site, &site.g, proto, (None, site.own(family, 80)));
        all = all.with(name(proto), &seen);
    }
    all
}

fn local_client(site: &Site, family: Family) -> Observation {
    let host = &site.lab.host;
    let own = site.own(family, 80);
    let mut all = talk_both(site, host, own);
    for proto in PROTOS {
        let seen = reach(site, host, proto, (Some(own.ip()), own));
        all = all.with(&format!("bound, {}", name(proto)), &seen);
    }
    all
}

fn local_loopback(site: &Site, family: Family) -> Observation {
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let to = SocketAddr::new(loopback, any_port(family));
    let mut all = Observation::default();
    for (words, from) in [("any", None), ("bound", Some(loopback))] {
        for proto in PROTOS {
            let seen = reach(site, &site.lab.host, proto, (from, to));
            all = all.with(&format!("{words}, {}", name(proto)), &seen);
        }
    }
    all
}

fn spoofed(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    let host = site.addr(Place::Host, family);
    for (words, src) in [
        ("target's", site.addr(Place::F, family)),
        ("destination's", host),
    ] {
        let probe = Probe::new(site, family);
        let mut ip = Ip::new(src, host, probe.tcp(80, SYN));
        ip.id = super::packet::HAND_MADE_ID;
        all = all.with(words, &probe.ask(&ip, &[Place::F]));
    }
    all
}
