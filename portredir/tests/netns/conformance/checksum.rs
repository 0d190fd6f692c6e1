//! Checksums, offload and large packets.

use std::io::Read as _;
use std::time::Duration;

use super::case::{Case, tcp, udp};
use super::client::{Conversation, converse};
use super::decode::{Arrival, Body};
use super::frame::{SYN, Sum, options_header};
use super::ghost::Ghost;
use super::observe::{Observation, check, failure};
use super::site::{Site, Subject};
use super::tcp::{echo_all, noise};
use crate::lab::Family;
use crate::lab::program::PROGRAM;
use crate::peer::conn::{Conn, Proto};

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    tcp(26, "full_checksum", "data with a complete checksum in the packet", full_checksum),
    udp(27, "published_datagram", "a datagram to 85, whose target port a DNAT rule publishes from another host", published_datagram),
    tcp(28, "bad_tcp_checksum", "SYN with a wrong checksum", bad_tcp_checksum),
    tcp(29, "download", "300 KB down", download),
    tcp(30, "every_segment", "1 MB down: every packet on the wire", every_segment),
    tcp(31, "other_host", "rules with a target on another host, by `plan`", other_host).v4().demands("planned by engines with a way, refused by others; `snat auto` and `direct`: refused"),
    tcp(32, "jumbo_frames", "MTU 9000: 1 MB each way", jumbo_frames),
    udp(33, "checksum_behind_extensions", "a datagram behind hop-by-hop and destination options", behind_extensions).v6(),
    udp(105, "jumbo_datagrams", "MTU 9000: datagrams of 8000 bytes", jumbo_datagrams),
    tcp(106, "bad_data_checksum", "data with a wrong checksum, then again with the right one", bad_data_checksum),
    udp(107, "partial_datagram", "a datagram with checksum offload, whatever the setting of the device", partial_datagram),
    tcp(108, "partial_syn", "SYN with checksum offload, whatever the setting of the device", partial_syn),
];

fn full_checksum(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(80) else {
        return Observation::of("no connection");
    };
    let mut ip = ghost.ip(connection.segment(0x18, b"summed up"));
    ip.sum = Sum::Right;
    ghost.send(&ip);
    connection.advance(0x18, 9);
    Observation::of(check(connection.is_said_back(b"summed up"), "echoed"))
}

/// A DNAT rule that publishes a port of another host on this host.
pub const PUBLISH: &str = "
    chain published {
        type nat hook prerouting priority dstnat + 5
        fib daddr type local meta l4proto { tcp, udp } th dport 8085 dnat ip to 10.9.2.2
        fib daddr type local meta l4proto { tcp, udp } th dport 8085 dnat ip6 to fd09:0:0:2::2
    }";

fn published_datagram(site: &Site, family: Family) -> Observation {
    let _filter = site.filter(PUBLISH);
    converse(&site.lab.client, Proto::Udp, family.host(85))
}

fn bad_tcp_checksum(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Wrong;
    ghost.ask(&ip)
}

/// Has an echo send this much.
fn download(site: &Site, family: Family) -> Observation {
    match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80)) {
        Ok(conversation) => {
            Observation::of(echo_all(&conversation, &noise(300_000), Duration::ZERO))
        }
        Err(error) => Observation::of(failure(&error)),
    }
}

fn every_segment(site: &Site, family: Family) -> Observation {
    let wire = &site.wires[0];
    let mut conversation =
        match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80)) {
            Ok(conversation) => conversation,
            Err(error) => return Observation::of(failure(&error)),
        };
    let port = conversation.conn.local().port();
    wire.forget();
    let mut ports = Vec::new();
    // In parts that fit the buffer of the observer.
    let noise = noise(50_000);
    for _ in 0..20 {
        conversation.conn.send(&noise).expect("send");
        let Conn::Tcp(stream) = &mut conversation.conn else {
            unreachable!("a TCP connection")
        };
        let mut answer = vec![0; noise.len()];
        if let Err(error) = stream.read_exact(&mut answer) {
            return Observation::of(failure(&error));
        }
        while let Some(received) = wire.receive(Duration::from_micros(1)) {
            if let Some(Arrival {
                body: Body::Tcp { ports: p, .. },
                ..
            }) = Arrival::read(&received)
                && p.1 == port
            {
                ports.push(p.0);
            }
        }
    }
    let is_right = ports.len() > 20 && ports.iter().all(|port| *port == 80);
    Observation::of(check(is_right, "all of them are from 80"))
}

fn other_host(site: &Site, _: Family) -> Observation {
    let Subject::Engine(engine) = site.subject else {
        unreachable!("nft is not asked")
    };
    let rule = "80:10.9.2.2:8080";
    let plan = |args: &[&str]| {
        // Programs for XDP are attached to the other interfaces.
        let plan = [PROGRAM, "plan", "--iface", "lo", "--engine", engine];
        let mut program = site.lab.host.start(&[&plan[..], args].concat());
        let status = program.wait();
        (status.code(), program.out() + &program.err())
    };
    let (code, said) = plan(&[rule]);
    let (expected, words) = match engine {
        "socket" => (
            2,
            "--engine socket gives connections to listeners on this host alone",
        ),
        "xdp" | "xdp-generic" => (2, "would leave this host with a wrong one"),
        _ => (0, "target 10.9.2.2:8080: by "),
    };
    let is_planned = code == Some(expected) && said.contains(words);
    let (code, said) = plan(&["80:10.9.2.2:8080 snat auto"]);
    let is_snat_refused = code == Some(2) && said.contains("write `snat never`");
    let (code, said) = plan(&["--forward", "direct", rule]);
    let is_direct_refused = code == Some(2) && said.contains("`direct` comes with a later version");
    let planned = check(
        is_planned,
        "planned by engines with a way, refused by others",
    );
    let refused = is_snat_refused && is_direct_refused;
    Observation::of(format!(
        "{planned}; {}",
        check(refused, "`snat auto` and `direct`: refused")
    ))
}

/// Runs a case with another MTU between client and host.
fn with_mtu(site: &Site, run: impl FnOnce() -> Observation) -> Observation {
    let set = |mtu: &str| {
        let ends = [(&site.lab.host, "h0"), (&site.lab.client, "c0")];
        // Both ends, or the setting has no effect.
        ends.map(|(at, name)| at.succeeds(&["ip", "link", "set", name, "mtu", mtu]))
    };
    let is_set = set("9000");
    let seen = run();
    set("1500");
    if is_set == [true, true] {
        seen
    } else {
        seen.and("the MTU was refused")
    }
}

fn jumbo_frames(site: &Site, family: Family) -> Observation {
    with_mtu(site, || {
        match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80)) {
            Ok(conversation) => {
                Observation::of(echo_all(&conversation, &noise(1_000_000), Duration::ZERO))
            }
            Err(error) => Observation::of(failure(&error)),
        }
    })
}

fn jumbo_datagrams(site: &Site, family: Family) -> Observation {
    with_mtu(site, || {
        match Conversation::begin(&site.lab.client, Proto::Udp, 0, family.host(80)) {
            Ok(mut conversation) => Observation::of(match conversation.echoes(&noise(8000)) {
                Ok(is_same) => check(is_same, "every byte arrived"),
                Err(error) => failure(&error).to_owned(),
            }),
            Err(error) => Observation::of(failure(&error)),
        }
    })
}

fn behind_extensions(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.udp(80, b"behind options");
    ip.extensions = vec![(0, options_header(1)), (60, options_header(2))];
    ghost.ask(&ip)
}

fn bad_data_checksum(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(80) else {
        return Observation::of("no connection");
    };
    let mut ip = ghost.ip(connection.segment(0x18, b"said twice"));
    ip.sum = Sum::Wrong;
    let first = ghost.ask(&ip);
    ip.sum = Sum::Right;
    ghost.send(&ip);
    connection.advance(0x18, 10);
    let second = check(connection.is_said_back(b"said twice"), "echoed");
    Observation::default()
        .with("wrong", &first)
        .with("right", &Observation::of(second))
}

fn partial_datagram(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.udp(80, b"left to the hardware");
    ip.sum = Sum::Partial;
    ghost.ask(&ip)
}

fn partial_syn(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Partial;
    ghost.ask(&ip)
}
