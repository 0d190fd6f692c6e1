//! Interfaces of other kinds, and such that come and go.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::case::{Case, own, tcp, udp};
use super::client::{Conversation, converse};
use super::observe::{Observation, check, failure};
use super::rules;
use super::server::{Manner, Server};
use super::site::{Site, Subject};
use crate::lab::flap::flap;
use crate::lab::message::NO_ETHERNET_HEADER;
use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::python::python;
use crate::lab::{Family, Lab, add_addrs, link};
use crate::path::link::TUNNEL;
use crate::peer::conn::Proto;
use crate::skip;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    own(71, "tun", "the client is behind a tun device, where packets begin with the IP header", |subject| tun(subject, Proto::Tcp)),
    own(72, "vlan_device", "the client is in a VLAN for which the host has a device, with the tags in the packet", |subject| vlan_device(subject, Proto::Tcp)).known("IPv4: 8080 reached; IPv6: 8080 reached"),
    own(165, "tun_datagram", "a datagram over a tun device", |subject| tun(subject, Proto::Udp)).udp(),
    own(166, "vlan_datagram", "a datagram over a VLAN device", |subject| vlan_device(subject, Proto::Udp)).udp().known("IPv4: 8080 reached; IPv6: 8080 reached"),
    tcp(73, "bridge_and_port", "a container connects to 90, redirected to 9090, which is redirected to 9191", |site, family| converse(&site.a, Proto::Tcp, SocketAddr::new(family.addr(3, 1), 90))),
    tcp(74, "new_interface", "an interface that appears while the redirect runs", new_interface),
    tcp(75, "new_address", "an address that appears while the redirect runs", new_address),
    tcp(176, "new_local_route", "an address that appears as a route of type `local` while the redirect runs", new_local_route),
    tcp(177, "link_flap", "a link is down for 200 ms, and the client sends meanwhile; a new connection right after", |site, family| link_flap(site, family, Proto::Tcp)),
    udp(178, "link_flap_datagram", "a link is down for 200 ms: datagrams of one socket before and after; those of a new one", |site, family| link_flap(site, family, Proto::Udp)),
];

/// How long a new interface or address may take: less than a second, but the
/// machine may be busy.
const PATIENCE: Duration = Duration::from_secs(15);

/// The first observation that `is_it` accepts, or the last one.
fn until(is_it: impl Fn(&Observation) -> bool, see: impl Fn() -> Observation) -> Observation {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = see();
        if is_it(&seen) || Instant::now() > end {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Redirects 80 on a host with one link and a server, and connects to it.
fn redirect(subject: Subject, lab: &Lab, proto: Proto) -> Observation {
    let _server = Server::start(&lab.host, "8080", 8080, Manner::Echo);
    let redirector = match subject {
        Subject::Nft => {
            lab.host.run(&["nft", &rules::nft()]);
            None
        }
        Subject::Engine(engine) => {
            let rule = match proto {
                Proto::Tcp => "80:8080",
                Proto::Udp => "80:8080/udp",
            };
            let args = [
                "--iface",
                "all",
                "--engine",
                engine,
                "--drain-timeout",
                "0",
                rule,
            ];
            // The program may refuse, with a reason.
            let plan = [&[PROGRAM, "plan"][..], &args[..4], &args[6..]].concat();
            let mut plan = lab.host.start(&plan);
            if !plan.wait().success() {
                let says_why = plan.err().contains(NO_ETHERNET_HEADER);
                return Observation::of(check(says_why, "refused: no Ethernet header"));
            }
            Some(Redirector::start(&lab.host, &args))
        }
    };
    let mut all = Observation::default();
    for (name, family) in [("IPv4", Family::V4), ("IPv6", Family::V6)] {
        all = all.with(name, &converse(&lab.client, proto, family.host(80)));
    }
    if let Some(redirector) = redirector {
        redirector.stop();
    }
    all
}

fn tun(subject: Subject, proto: Proto) -> Observation {
    if !std::path::Path::new("/dev/net/tun").exists() {
        skip("needs /dev/net/tun");
    }
    let lab = Lab::unlinked();
    let names = [lab.host.name.as_str(), lab.client.name.as_str()];
    let mut tunnel = lab
        .host
        .start(&[python(), "-c", TUNNEL, names[0], names[1]]);
    tunnel.wait_for_words("ready");
    add_addrs(&lab.host, "h0", (1, 1));
    add_addrs(&lab.client, "c0", (1, 2));
    lab.wait_for_link();
    redirect(subject, &lab, proto)
}

fn vlan_device(subject: Subject, proto: Proto) -> Observation {
    let lab = Lab::unlinked();
    link((&lab.host, "h0", (3, 1)), (&lab.client, "c0", (3, 2)));
    for (at, name, number) in [(&lab.host, "h0", 1), (&lab.client, "c0", 2)] {
        let device = format!("{name}.10");
        let add = [
            "ip", "link", "add", "link", name, "name", &device, "type", "vlan", "id", "10",
        ];
        if !at.succeeds(&add) {
            skip("needs CONFIG_VLAN_8021Q");
        }
        add_addrs(at, &device, (1, number));
        at.run(&["ethtool", "-K", name, "tx-vlan-hw-insert", "off"]);
    }
    lab.wait_for_link();
    redirect(subject, &lab, proto)
}

fn new_interface(site: &Site, family: Family) -> Observation {
    let (net, name, peer) = match family {
        Family::V4 => (11, "h4", "f4"),
        Family::V6 => (12, "h6", "f6"),
    };
    let far = site.lab.far();
    link((&site.lab.host, name, (net, 1)), (far, peer, (net, 2)));
    let to = SocketAddr::new(family.addr(net, 1), 80);
    let is_there = |seen: &Observation| *seen == Observation::of("8080 reached");
    let seen = until(is_there, || converse(far, Proto::Tcp, to));
    site.lab.host.ip(&format!("link del {name}"));
    seen
}

/// Sent while a link is down.
const MEANWHILE: &[u8] = b"while the link is down";

/// Begins a conversation over a link of its own.
fn link_flap(site: &Site, family: Family, proto: Proto) -> Observation {
    let (net, name, peer) = match family {
        Family::V4 => (13, "h7", "f7"),
        Family::V6 => (14, "h8", "f8"),
    };
    let (host, far) = (&site.lab.host, site.lab.far());
    link((host, name, (net, 1)), (far, peer, (net, 2)));
    let to = SocketAddr::new(family.addr(net, 1), 80);
    let is_there = |seen: &Observation| *seen == Observation::of("8080 reached");
    let before = until(is_there, || converse(far, proto, to));
    let all = Observation::default().with("before", &before);
    let all = match Conversation::begin(far, proto, 0, to) {
        Ok(mut conversation) => {
            let mut goes_on = true;
            flap((host, name), (far, peer), || {
                // TCP sends again what is lost now.
                if proto == Proto::Tcp {
                    goes_on = conversation.conn.send(MEANWHILE).is_ok();
                }
            });
            let new = converse(far, proto, to);
            if proto == Proto::Tcp {
                let echo = conversation.conn.receive(MEANWHILE.len());
                goes_on &= echo.is_ok_and(|echo| echo == MEANWHILE);
            }
            goes_on &= conversation.echoes(b"still there?").unwrap_or(false);
            all.and(check(goes_on, "the conversation continues"))
                .with("new", &new)
        }
        Err(error) => all.and(failure(&error)),
    };
    host.ip(&format!("link del {name}"));
    all
}

fn new_local_route(site: &Site, family: Family) -> Observation {
    let host = &site.lab.host;
    let addr = family.addr(10, 7);
    host.ip(&format!("route add local {addr} dev lo"));
    let to = SocketAddr::new(addr, 80);
    let is_there = |seen: &Observation| *seen == Observation::of("8080 reached");
    let seen = until(is_there, || converse(&site.lab.client, Proto::Tcp, to));
    host.ip(&format!("route del local {addr} dev lo"));
    seen
}

fn new_address(site: &Site, family: Family) -> Observation {
    let host = &site.lab.host;
    let addr = family.addr(1, 31);
    let (len, nodad) = match family {
        Family::V4 => (24, ""),
        Family::V6 => (64, " nodad"),
    };
    host.ip(&format!("addr add {addr}/{len} dev h0{nodad}"));
    let to = SocketAddr::new(addr, 80);
    let is_there = |seen: &Observation| *seen == Observation::of("8080 reached");
    let seen = until(is_there, || converse(&site.lab.client, Proto::Tcp, to));
    host.ip(&format!("addr del {addr}/{len} dev h0"));
    seen
}
