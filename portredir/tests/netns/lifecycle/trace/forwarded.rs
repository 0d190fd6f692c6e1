//! Packets to targets with an address: lines have the address of the target.

use std::net::SocketAddr;

use super::{end, start, wait_for_line, wait_for_segment};
use crate::lab::process::{Process, wait_for};
use crate::lab::program::PROGRAM;
use crate::lab::{Family, Far, Lab};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::peer::echo::EchoServer;

/// A target in each version of IP, one by the very port that clients dial, and one on which
/// nobody listens.
const RULES: [&str; 4] = [
    "80:10.9.2.2:8080/both",
    "82:[fd09:0:0:2::2]:8080/both",
    "8080:10.9.2.2/both",
    "83:10.9.2.2:9/udp",
];

pub fn packets() {
    let lab = Lab::with_far(&CELL, Far::BehindHost);
    let _servers = Family::BOTH.map(|family| {
        let far = lab.far();
        EchoServer::at(far, family.addr(2, 2), 8080)
    });
    let host = Host::of(&lab);
    host.run(&[
        "up", "--iface", "h0,lo", RULES[0], RULES[1], RULES[2], RULES[3],
    ]);
    let trace = start(&lab, &[]);
    for (family, port, rule) in [
        (Family::V4, 80, RULES[0]),
        (Family::V6, 82, RULES[1]),
        (Family::V4, 8080, RULES[2]),
    ] {
        for proto in PROTOS {
            let dialled = family.host(port);
            let mut conn = Conn::to(&lab.client, proto, 0, dialled);
            conn.echo(b"a message");
            check_conversation(&trace, &conn, (proto, dialled, rule));
        }
    }
    refused(&lab, &trace);
    local(&lab, &trace);
    end(trace);
    text(&lab);
    host.down();
}

/// The text has the address where it changes.
fn text(lab: &Lab) {
    let mut trace = lab.host.start(&[PROGRAM, "trace", "port", "80"]);
    trace.wait_for_words("tracing");
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"a message");
    for words in [
        "10.9.1.1:80=>10.9.2.2:8080 pass",
        "10.9.2.2:8080=>10.9.1.1:80 -> ",
    ] {
        wait_for(words, || trace.out().contains(words).then_some(()));
    }
}

/// The lines of a conversation have the ends of client, destination and target.
fn check_conversation(
    trace: &Process,
    conn: &Conn,
    (proto, dialled, rule): (Proto, SocketAddr, &str),
) {
    let protocol = format!("{proto:?}").to_lowercase();
    let family = if dialled.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let target = SocketAddr::new(family.addr(2, 2), 8080);
    let [client, dialled, target] = [conn.local(), dialled, target].map(|end| end.to_string());
    let forth = [
        ("/protocol", protocol.as_str()),
        ("/hook", "ingress"),
        ("/interface", "h0"),
        ("/before/src", &client),
        ("/after/src", &client),
        ("/before/dst", &dialled),
        ("/after/dst", &target),
        ("/reason", "redirected"),
        ("/rule", rule),
    ];
    let back = [
        ("/protocol", protocol.as_str()),
        ("/hook", "egress"),
        ("/interface", "h0"),
        ("/before/src", &target),
        ("/after/src", &dialled),
        ("/before/dst", &client),
        ("/after/dst", &client),
        ("/reason", "restored"),
        ("/rule", rule),
    ];
    wait_for_line(trace, &forth);
    wait_for_line(trace, &back);
    if proto == Proto::Tcp {
        wait_for_segment(trace, &forth, "S");
        wait_for_segment(trace, &back, "S.");
    }
}

/// The error of the target quotes a packet that the client never sent.
fn refused(lab: &Lab, trace: &Process) {
    let dialled = Family::V4.host(83).to_string();
    let refused = Conn::connect(&lab.client, Proto::Udp, 0, Family::V4.host(83));
    let mut refused = refused.expect("a socket");
    refused.send(b"to nobody").expect("send");
    wait_for_line(
        trace,
        &[
            ("/hook", "egress"),
            ("/protocol", "icmp"),
            ("/before/dst", "10.9.2.2:9"),
            ("/after/dst", &dialled),
        ],
    );
}

/// Clients on the host, whose packets are never changed.
fn local(lab: &Lab, trace: &Process) {
    let dialled: SocketAddr = "127.0.0.1:80".parse().expect("an end");
    let mut conn = Conn::to(&lab.host, Proto::Tcp, 0, dialled);
    conn.echo(b"a local client");
    wait_for_line(
        trace,
        &[
            ("/hook", "connect"),
            ("/before/dst", "127.0.0.1:80"),
            ("/after/dst", "10.9.2.2:8080"),
            ("/reason", "redirected"),
            ("/rule", RULES[0]),
        ],
    );
}
