//! Firewalls, programs of others, servers that come and go, and other rules.

use std::net::SocketAddr;

use super::case::{Case, own, tcp, udp};
use super::checksum::PUBLISH;
use super::client::{Conversation, converse};
use super::frame::SYN;
use super::ghost::Ghost;
use super::observe::{Observation, check, failure};
use super::server::{Manner, Server};
use super::site::{Offload, Site, Subject};
use crate::lab::Family;
use crate::lab::foreign::{Foreign, NEXT, PASS};
use crate::lab::program::attached;
use crate::peer::conn::Proto;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    own(76, "foreign_xdp", "another XDP program on the interface", foreign_xdp).demands("it still runs; 8080 reached"),
    own(77, "foreign_tc", "other TC programs on the interface, on the way in and out", foreign_tc).demands("8080 reached; they still run"),
    tcp(78, "firewall_on_target", "a firewall on INPUT that allows 95 and not 8095", firewall_on_target),
    tcp(79, "published", "a connection to 85, whose target port a DNAT rule publishes from another host", published),
    own(80, "kill_9", "`kill -9`", kill_9).demands("refused; nothing is left attached"),
    own(81, "second_instance", "the program is started twice", second_instance).demands("exit code 1; the first continues: 8080 reached"),
    tcp(82, "server_restart", "the server comes, goes and comes again", server_restart),
    tcp(83, "loopback_target", "a target server bound to loopback, and a client from outside", |site, family| converse(&site.lab.client, Proto::Tcp, family.host(83))),
    tcp(84, "listeners", "four servers that share a port; one for IPv6 only; one dual-stack socket", listeners),
    tcp(150, "firewall_on_dialled", "a firewall on INPUT that allows 8095 and not 95", firewall_on_dialled),
    tcp(151, "original_destination", "what `SO_ORIGINAL_DST` returns to the server", original_destination),
    tcp(152, "invalid_drop", "`ct state invalid drop` on PREROUTING and OUTPUT", |site, family| invalid_drop(site, family, Proto::Tcp)),
    udp(153, "invalid_drop_datagram", "the same for datagrams", |site, family| invalid_drop(site, family, Proto::Udp)),
    tcp(154, "server_on_both", "93, where a server listens on the destination port too", |site, family| converse(&site.lab.client, Proto::Tcp, family.host(93))),
    udp(155, "server_on_both_datagram", "the same for datagrams", |site, family| converse(&site.lab.client, Proto::Udp, family.host(93))),
    tcp(156, "range", "9003 and 9000 of a range of ports, each to a target port of its own", |site, family| both(site, Proto::Tcp, family.host(9003), family.host(9000))),
    udp(157, "range_datagram", "the same for datagrams", |site, family| both(site, Proto::Udp, family.host(9003), family.host(9000))),
    tcp(158, "range_to_one", "86 and 88 of a range with one target port", |site, family| both(site, Proto::Tcp, family.host(86), family.host(88))),
    tcp(159, "no_chain", "90, redirected to 9090; 9090, redirected to 9191", |site, family| both(site, Proto::Tcp, family.host(90), family.host(9090))),
    udp(160, "no_chain_datagram", "the same for datagrams", |site, family| both(site, Proto::Udp, family.host(90), family.host(9090))),
    tcp(161, "from_condition", "98, a rule for the lower half of the network: a client there; a client of the other half", from_condition),
    tcp(162, "address_condition", "99, a rule for the second address: to that one; to the first", |site, family| both(site, Proto::Tcp, SocketAddr::new(family.addr(1, 11), 99), family.host(99))),
    udp(163, "address_condition_datagram", "the same for datagrams", |site, family| both(site, Proto::Udp, SocketAddr::new(family.addr(1, 11), 99), family.host(99))),
    tcp(164, "interface_condition", "100, a rule for the second interface: in by that one; in by the first", interface_condition),
];

/// Two addresses, one after the other.
fn both(site: &Site, proto: Proto, first: SocketAddr, second: SocketAddr) -> Observation {
    let converse = |to| converse(&site.lab.client, proto, to);
    Observation::default()
        .with("first", &converse(first))
        .with("second", &converse(second))
}

fn foreign_xdp(subject: Subject) -> Observation {
    let mut site = Site::idle(subject, Offload::Off);
    let foreign = Foreign::attach(&site.lab.host, ("xdp", "native"), "h0", ("foreign", PASS));
    let Subject::Engine(engine) = subject else {
        unreachable!("nft is not asked")
    };
    if engine == "xdp" {
        let args = ["--iface", "h0", "--engine", engine, "80:8080"];
        let mut process = site.command(&args);
        let status = process.wait();
        let says = process.err().contains("foreign");
        return Observation::of(check(still_runs(&site, &foreign), "it still runs"))
            .and(format!(
                "refused with exit code {}",
                status.code().unwrap_or(-1)
            ))
            .and(check(says, "the error names the program"));
    }
    site.start();
    let seen = converse(&site.lab.client, Proto::Tcp, Family::V4.host(80));
    let runs = check(still_runs(&site, &foreign), "it still runs");
    site.finish();
    Observation::of(runs).and(seen.to_string())
}

/// Whether a program sees packets that are not redirected.
fn still_runs(site: &Site, foreign: &Foreign) -> bool {
    let before = foreign.packets(8080);
    converse(&site.lab.client, Proto::Tcp, Family::V4.host(8080));
    foreign.packets(8080) > before
}

fn foreign_tc(subject: Subject) -> Observation {
    let mut site = Site::idle(subject, Offload::Off);
    let host = &site.lab.host;
    host.run(&["tc", "qdisc", "add", "dev", "h0", "clsact"]);
    let foreign = ["ingress", "egress"]
        .map(|hook| Foreign::attach(&site.lab.host, (hook, "10"), "h0", ("foreign", NEXT)));
    site.start();
    let seen = converse(&site.lab.client, Proto::Tcp, Family::V4.host(80));
    let run = foreign.iter().all(|foreign| still_runs(&site, foreign));
    site.finish();
    seen.and(check(run, "they still run"))
}

/// A firewall in front of 95 and 8095.
fn behind_firewall(site: &Site, family: Family, shut: u16, open: u16) -> Observation {
    let _server = Server::start(&site.lab.host, "8095", 8095, Manner::Echo);
    let _filter = site.filter(&format!(
        "chain input {{
            type filter hook input priority 0
            tcp dport {open} accept
            tcp dport {shut} reject with tcp reset
        }}"
    ));
    converse(&site.lab.client, Proto::Tcp, family.host(95))
}

fn firewall_on_target(site: &Site, family: Family) -> Observation {
    behind_firewall(site, family, 8095, 95)
}

fn firewall_on_dialled(site: &Site, family: Family) -> Observation {
    behind_firewall(site, family, 95, 8095)
}

fn published(site: &Site, family: Family) -> Observation {
    let _filter = site.filter(PUBLISH);
    converse(&site.lab.client, Proto::Tcp, family.host(85))
}

fn kill_9(subject: Subject) -> Observation {
    let mut site = Site::new(subject, Offload::Off);
    site.kill();
    let seen = converse(&site.lab.client, Proto::Tcp, Family::V4.host(80));
    let left = attached(&site.lab.host);
    seen.and(check(left.is_empty(), "nothing is left attached"))
}

fn second_instance(subject: Subject) -> Observation {
    let mut site = Site::new(subject, Offload::Off);
    let Subject::Engine(engine) = subject else {
        unreachable!("nft is not asked")
    };
    let mut second = site.command(&["--iface", "h0", "--engine", engine, "80:9090"]);
    let status = second.wait();
    let seen = converse(&site.lab.client, Proto::Tcp, Family::V4.host(80));
    site.finish();
    Observation::of(format!("exit code {}", status.code().unwrap_or(-1)))
        .with("the first continues", &seen)
}

fn server_restart(site: &Site, family: Family) -> Observation {
    let to = family.host(96);
    let converse = || converse(&site.lab.client, Proto::Tcp, to);
    let before = converse();
    let server = Server::start(&site.lab.host, "8096", 8096, Manner::Echo);
    let first = converse();
    drop(server);
    let between = converse();
    let server = Server::start(&site.lab.host, "8096", 8096, Manner::Echo);
    let second = converse();
    drop(server);
    [before, first, between, second]
        .iter()
        .map(Observation::to_string)
        .collect()
}

fn listeners(site: &Site, family: Family) -> Observation {
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..80 {
        match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(82)) {
            Ok(conversation) => names.insert(conversation.name),
            Err(error) => names.insert(failure(&error).to_owned()),
        };
    }
    let all = names.into_iter().collect::<Vec<_>>().join(", ");
    let v6_only = converse(&site.lab.client, Proto::Tcp, family.host(84));
    let server = Server::dual_stack(&site.lab.host, "8097", 8097);
    let dual = converse(&site.lab.client, Proto::Tcp, family.host(97));
    drop(server);
    Observation::default()
        .with("shared", &Observation::of(all))
        .with("IPv6 only", &v6_only)
        .with("both", &dual)
}

fn original_destination(site: &Site, family: Family) -> Observation {
    match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80)) {
        Ok(conversation) if conversation.original == 0 => Observation::of("nothing"),
        Ok(conversation) => Observation::of(format!("port {}", conversation.original)),
        Err(error) => Observation::of(failure(&error)),
    }
}

const INVALID_DROP: &str = "
    chain prerouting {
        type filter hook prerouting priority 0
        ct state invalid drop
    }
    chain output {
        type filter hook output priority 0
        ct state invalid drop
    }";

fn invalid_drop(site: &Site, family: Family, proto: Proto) -> Observation {
    let _filter = site.filter(INVALID_DROP);
    converse(&site.lab.client, proto, family.host(80))
}

fn from_condition(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let upper = ghost.ask(&ghost.tcp(98, SYN));
    Observation::default()
        .with(
            "lower",
            &converse(&site.lab.client, Proto::Tcp, family.host(98)),
        )
        .with("upper", &upper)
}

fn interface_condition(site: &Site, family: Family) -> Observation {
    let to = SocketAddr::new(family.addr(2, 1), 100);
    Observation::default()
        .with("second", &converse(site.lab.far(), Proto::Tcp, to))
        .with("first", &converse(&site.lab.client, Proto::Tcp, to))
}
