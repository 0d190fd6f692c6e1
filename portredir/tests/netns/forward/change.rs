//! Rules that change while flows are open.

use std::net::SocketAddr;
use std::time::Duration;

use super::case::{Case, own};
use super::rules::Rule;
use super::site::Site;
use super::subject::{Layout, Place};
use super::talk::{goes_on, name, reach};
use crate::conformance::client::Conversation;
use crate::conformance::observe::{Observation, check, failure};
use crate::lab::Family;
use crate::peer::conn::{PROTOS, Proto};

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    own(41, "two_targets", "80 leads to F and G: 60 connections, and ten datagrams of one socket", (Layout::Bridge(true), two_targets)),
    own(42, "target_changes", "80 leads to F, then to G, with a connection and a UDP flow open", (Layout::Bridge(true), target_changes)),
    own(43, "target_is_gone", "80 leads to F, whose address goes, then to G: ten datagrams of the old socket, and new ones", (Layout::Bridge(true), target_is_gone)),
    own(44, "syn_to_absent_target", "a connection begins while 80 leads to a host that is not there, then to F", (Layout::Bridge(true), syn_to_absent_target)),
    own(45, "rule_is_removed", "the rule is removed with a connection and a UDP flow open", (Layout::Bridge(true), rule_is_removed)),
];

fn at(site: &Site, family: Family, place: Place) -> SocketAddr {
    SocketAddr::new(site.addr(place, family), 8080)
}

fn rule(site: &Site, family: Family, targets: &[Place]) -> Rule {
    let targets: Vec<_> = targets
        .iter()
        .map(|place| at(site, family, *place))
        .collect();
    Rule::new(site.own(family, 80), &targets)
}

fn begin(site: &Site, family: Family, proto: Proto) -> std::io::Result<Conversation> {
    Conversation::begin(&site.lab.client, proto, 0, site.own(family, 80))
}

fn two_targets(site: &mut Site, family: Family) -> Observation {
    let rule = rule(site, family, &[Place::F, Place::G]).with("check none");
    site.up(&[rule]);
    let mut reached = [0, 0];
    for _ in 0..60 {
        match begin(site, family, Proto::Tcp) {
            Ok(conversation) if conversation.name == "F" => reached[0] += 1,
            Ok(_) => reached[1] += 1,
            Err(error) => return Observation::of(failure(&error)),
        }
    }
    // Less than 15 of 60 by chance: once in 20 000 runs.
    let is_shared = reached[0] + reached[1] == 60 && reached.iter().all(|count| *count >= 15);
    let first = begin(site, family, Proto::Udp);
    let stays = first.is_ok_and(|mut conversation| {
        (0..10).all(|_| {
            let name = conversation.name.clone();
            conversation.conn.send(b"who?").is_ok()
                && conversation
                    .conn
                    .receive(0)
                    .is_ok_and(|reply| reply.starts_with(name.as_bytes()))
        })
    });
    Observation::of(check(is_shared, "each has a quarter of 60 or more"))
        .and(check(stays, "one UDP flow stays with its target"))
}

/// The server that answers in a UDP conversation, or why none does.
fn who(conversation: &mut Conversation) -> String {
    let reply = conversation.conn.send(b"who?");
    let reply = reply.and_then(|()| conversation.conn.receive(0));
    match reply {
        Ok(reply) => match crate::conformance::client::greeting(&reply) {
            Some((name, ..)) => name,
            None => "other words".to_owned(),
        },
        Err(error) => failure(&error).to_owned(),
    }
}

fn target_changes(site: &mut Site, family: Family) -> Observation {
    let old = rule(site, family, &[Place::F]);
    let new = rule(site, family, &[Place::G]);
    site.up(std::slice::from_ref(&old));
    let (tcp, udp) = (
        begin(site, family, Proto::Tcp),
        begin(site, family, Proto::Udp),
    );
    let (Ok(mut tcp), Ok(mut udp)) = (tcp, udp) else {
        return Observation::of("no conversation");
    };
    site.replace(&old, &new);
    let old = goes_on(&mut tcp);
    let mut all = Observation::of(format!("the connection to {} {old}", tcp.name));
    let reached = who(&mut udp);
    all = all.and(format!("the UDP flow to {} reaches {reached}", udp.name));
    for proto in PROTOS {
        let seen = reach(site, &site.lab.client, proto, (None, site.own(family, 80)));
        all = all.with(&format!("new by {}", name(proto)), &seen);
    }
    all
}

fn target_is_gone(site: &mut Site, family: Family) -> Observation {
    let old = rule(site, family, &[Place::F]);
    let new = rule(site, family, &[Place::G]);
    site.up(std::slice::from_ref(&old));
    let Ok(udp) = begin(site, family, Proto::Udp) else {
        return Observation::of("no conversation");
    };
    let addr = site.addr(Place::F, family);
    let len = if addr.is_ipv4() { 24 } else { 64 };
    site.f.ip(&format!("addr del {addr}/{len} dev f0"));
    site.replace(&old, &new);
    let crate::peer::conn::Conn::Udp(socket) = &udp.conn else {
        return Observation::of("not UDP");
    };
    let patience = Some(Duration::from_millis(400));
    socket.set_read_timeout(patience).expect("a timeout");
    let mut answers: Vec<String> = Vec::new();
    for _ in 0..10 {
        let mut buffer = [0; 512];
        let reply = socket.send(b"who?").and_then(|_| socket.recv(&mut buffer));
        let answer = match reply {
            Ok(len) => crate::conformance::client::greeting(&buffer[..len])
                .map_or_else(|| "other words".to_owned(), |(name, ..)| name),
            Err(error) => failure(&error).to_owned(),
        };
        if answers.last() != Some(&answer) {
            answers.push(answer);
        }
    }
    let new = reach(
        site,
        &site.lab.client,
        Proto::Udp,
        (None, site.own(family, 80)),
    );
    Observation::of(format!("old: {}", answers.join(", then "))).with("new", &new)
}

fn syn_to_absent_target(site: &mut Site, family: Family) -> Observation {
    let absent = SocketAddr::new(family.addr(2, 77), 8080);
    let old = Rule::new(site.own(family, 80), &[absent]);
    let new = rule(site, family, &[Place::F]);
    site.up(std::slice::from_ref(&old));
    let site = &*site;
    let seen = std::thread::scope(|scope| {
        let client = scope.spawn(|| begin(site, family, Proto::Tcp));
        std::thread::sleep(Duration::from_millis(500));
        site.replace(&old, &new);
        client.join().expect("no panic")
    });
    match seen {
        Ok(mut conversation) => super::talk::told(site, &mut conversation),
        Err(error) => Observation::of(failure(&error)),
    }
}

fn rule_is_removed(site: &mut Site, family: Family) -> Observation {
    let rule = rule(site, family, &[Place::F]);
    let rest = Rule::new(site.own(family, 81), &[at(site, family, Place::F)]);
    site.up(&[rule.clone(), rest.clone()]);
    let (tcp, udp) = (
        begin(site, family, Proto::Tcp),
        begin(site, family, Proto::Udp),
    );
    let (Ok(mut tcp), Ok(mut udp)) = (tcp, udp) else {
        return Observation::of("no conversation");
    };
    site.remove(&rule, &rest);
    let mut all = Observation::of(format!("the connection {}", goes_on(&mut tcp)))
        .and(format!("the UDP flow reaches {}", who(&mut udp)));
    for proto in PROTOS {
        let seen = reach(site, &site.lab.client, proto, (None, site.own(family, 80)));
        all = all.with(&format!("new by {}", name(proto)), &seen);
    }
    all
}
