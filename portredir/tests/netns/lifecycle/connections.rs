//! `connections`: what is listed is what the sockets of the test have, no more and no less.

mod forwarded;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use nix::sys::signal::Signal;
use portredir_common::flow::UDP_IDLE;
use serde_json::Value;

use crate::lab::capture::Capture;
use crate::lab::process::wait_for;
use crate::lab::program::{PROGRAM, Redirector, copy_world_executable};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::peer::echo::EchoServer;
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    for engine in ["auto", "xdp", "xdp-generic", "tc", "tc-clsact", "socket"] {
        for family in Family::BOTH {
            let cell = Cell {
                engine,
                is_offloaded: false,
                family,
            };
            let name = format!("{engine}/{family:?}/connections");
            tests.add(name, &["tcpdump"], move || foreground(&cell));
        }
    }
    tests.add("outlive/connections_local", &[], local_clients);
    tests.add(
        "outlive/connections_forwarded",
        &["nft"],
        forwarded::outlive,
    );
    tests.add("outlive/connections_to_targets", &["nft"], forwarded::local);
    tests.add(
        "auto/connections_forwarded",
        &["nft"],
        forwarded::foreground,
    );
    tests.add("outlive/connections_old_rule", &[], old_rule);
    tests.add("outlive/connections_filter", &[], filter);
    tests.add("outlive/connections_collision", &[], collision);
    tests.add("outlive/connections_watch", &["sh", "timeout"], watch);
    tests.add("outlive/connections_idle", &[], idle);
    tests.add("outlive/connections_many", &[], many);
    tests.add(
        "outlive/connections_not_permitted",
        &["setpriv"],
        not_permitted,
    );
}

/// The list on the host of a lab.
fn list(lab: &Lab, filter: &[&str]) -> Vec<Value> {
    let mut all = vec![PROGRAM, "connections", "--json"];
    all.extend(filter);
    let list: Value = serde_json::from_str(&lab.host.run(&all)).expect("JSON");
    assert_eq!(list["schema"], 1);
    assert_eq!(list["running"], true);
    assert_eq!(list["unknown_udp_flows"], 0, "{list}");
    list["connections"].as_array().expect("a list").clone()
}

fn text(lab: &Lab, args: &[&str]) -> String {
    let mut all = vec![PROGRAM, "connections"];
    all.extend(args);
    lab.host.run(&all)
}

/// The protocol, the client and the destination of a listed flow.
fn ends(flow: &Value) -> (String, SocketAddr, SocketAddr) {
    let addr = |addr: &str, port: &str| {
        let addr = flow[addr].as_str().expect("an address");
        let port = flow[port].as_u64().expect("a port");
        let addr = addr.parse().expect("an address");
        SocketAddr::new(addr, u16::try_from(port).expect("a port"))
    };
    let protocol = flow["protocol"].as_str().expect("a protocol").to_owned();
    (
        protocol,
        addr("client_addr", "client_port"),
        addr("dst_addr", "dst_port"),
    )
}

fn all_ends(flows: &[Value]) -> BTreeSet<(String, SocketAddr, SocketAddr)> {
    flows.iter().map(ends).collect()
}

fn end_of(proto: Proto, conn: &Conn, to: SocketAddr) -> (String, SocketAddr, SocketAddr) {
    (format!("{proto:?}").to_lowercase(), conn.local(), to)
}

/// The bytes of payload of TCP segments to and from a port.
fn payload(frames: &[Vec<u8>], port: u16) -> (u64, u64) {
    let (mut to, mut from) = (0, 0);
    for frame in frames {
        let packet = etherparse::SlicedPacket::from_ethernet(frame).expect("a frame");
        let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else {
            continue;
        };
        let len = tcp.payload().len() as u64;
        if tcp.destination_port() == port {
            to += len;
        } else if tcp.source_port() == port {
            from += len;
        }
    }
    (to, from)
}

fn tcp_of(flows: &[Value]) -> &Value {
    let tcp = flows.iter().find(|flow| flow["protocol"] == "tcp");
    tcp.expect("a connection")
}

/// Checks what the list says of a flow of this test beside its ends.
fn check(flow: &Value, rule: &str, engine: &str) {
    assert_eq!(flow["target_port"], 8080, "{flow}");
    assert_eq!(flow["rule"], rule, "{flow}");
    assert_eq!(flow["engines"], serde_json::json!([engine]), "{flow}");
    let process = &flow["processes"][0];
    assert_eq!(process["pid"], std::process::id(), "{flow}");
    assert!(
        flow["idle_seconds"].as_u64().expect("seconds") < 60,
        "{flow}"
    );
    let age = flow["age_seconds"].as_u64();
    assert!(
        age.is_some_and(|age| age < 60) || engine == "socket",
        "{flow}"
    );
}

/// A run in the foreground, whose maps are pinned nowhere.
fn foreground(cell: &Cell) {
    const ROUNDS: usize = 20;
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 8080);
    // Engine `socket` redirects no datagrams.
    let (rule, protos) = if cell.engine == "socket" {
        ("80:8080", &PROTOS[..1])
    } else {
        ("80:8080/both", &PROTOS[..])
    };
    let redirector = Redirector::of(cell, &lab, &[rule]);
    let [to, direct] = [80, 8080].map(|port| cell.family.host(port));
    assert_eq!(list(&lab, &[]), [] as [Value; 0]);
    let capture = Capture::start(&lab.client, "c0", "tcp port 80");
    let connect = |to| {
        let conns = protos.iter();
        let conns = conns.map(|&proto| (proto, Conn::to(&lab.client, proto, 0, to)));
        conns.collect::<Vec<_>>()
    };
    let (mut conns, mut directs) = (connect(to), connect(direct));
    for _ in 0..ROUNDS {
        for (_, conn) in conns.iter_mut().chain(&mut directs) {
            conn.echo(&[5; 700]);
        }
    }
    // The last bytes of the server are acknowledged a moment later.
    let sent = 700 * ROUNDS as u64;
    let flows = wait_for("the last acknowledgement", || {
        let flows = list(&lab, &[]);
        (tcp_of(&flows)["bytes_out"] == sent).then_some(flows)
    });
    let expected = conns.iter().map(|(proto, conn)| end_of(*proto, conn, to));
    assert_eq!(all_ends(&flows), expected.collect(), "{flows:?}");
    let engine = match cell.engine {
        "auto" | "tc-clsact" => "tc",
        engine => engine,
    };
    flows.iter().for_each(|flow| check(flow, rule, engine));
    let tcp = tcp_of(&flows);
    assert_eq!(tcp["state"], "established");
    wait_for("tcpdump", || {
        (payload(&capture.frames(), 80) == (sent, sent)).then_some(())
    });
    assert_eq!(
        (&tcp["bytes_in"], &tcp["bytes_out"]),
        (&sent.into(), &sent.into())
    );
    let udp = flows.iter().find(|flow| flow["protocol"] == "udp");
    for unknown in ["state", "bytes_in", "bytes_out"] {
        assert!(udp.is_none_or(|udp| udp[unknown].is_null()), "{udp:?}");
    }
    drop(conns);
    wait_for("the end of the connection", || {
        let tcp = list(&lab, &["state", "established"]);
        tcp.is_empty().then_some(())
    });
    drop(redirector.stop());
}

/// Clients on this host, who connect to the target port themselves, and one whose port is
/// bound, whose SYN is given to the listener.
fn local_clients() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let _server = EchoServer::start(&lab.host, 8080);
    host.run(&["up", "--iface", "all", "80:8080/both"]);
    let mut expected = BTreeSet::new();
    let mut conns = Vec::new();
    for to in ["127.0.0.1:80", "[::1]:80", "10.9.1.1:80"] {
        let to: SocketAddr = to.parse().expect("an address");
        for proto in PROTOS {
            let mut conn = Conn::to(&lab.host, proto, 0, to);
            conn.echo(b"hello");
            // Nobody tells the peers of a local client by UDP.
            if proto == Proto::Tcp {
                expected.insert(end_of(proto, &conn, to));
            }
            conns.push(conn);
        }
        let direct = SocketAddr::new(to.ip(), 8080);
        let mut conn = Conn::to(&lab.host, Proto::Tcp, 0, direct);
        conn.echo(b"direct");
        conns.push(conn);
    }
    let bound = "127.0.0.1:80".parse().expect("an address");
    let mut conn = Conn::to(&lab.host, Proto::Tcp, 4321, bound);
    conn.echo(b"hello");
    expected.insert(end_of(Proto::Tcp, &conn, bound));
    let is_acked = |flow: &Value| flow["bytes_out"] == 5;
    let flows = wait_for("the last acknowledgements", || {
        let flows = list(&lab, &[]);
        flows.iter().all(is_acked).then_some(flows)
    });
    assert_eq!(all_ends(&flows), expected, "{flows:#?}");
    for flow in &flows {
        assert_eq!(flow["rule"], "80:8080/both", "{flow}");
        assert_eq!(flow["target_port"], 8080, "{flow}");
        assert_eq!(flow["engines"], serde_json::json!(["local"]), "{flow}");
        assert_eq!(flow["processes"][0]["pid"], std::process::id(), "{flow}");
        assert_eq!(flow["bytes_in"], 5, "{flow}");
    }
    drop((conn, conns));
    host.down();
}

/// A rule that was removed still has its connections.
fn old_rule() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let _servers = [8080, 8081].map(|port| EchoServer::start(&lab.host, port));
    host.up(&["80:8080/both", "81:8081"]);
    let to = Family::V4.host(80);
    let mut conns = PROTOS.map(|proto| Conn::to(&lab.client, proto, 0, to));
    let mut other = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(81));
    let mut echo = || {
        conns
            .iter_mut()
            .chain([&mut other])
            .for_each(|conn| conn.echo(b"hello"));
    };
    echo();
    let rules = |flows: Vec<Value>| {
        let rule = |flow: &Value| {
            (
                flow["dst_port"].as_u64(),
                flow["rule"].as_str().map(str::to_owned),
            )
        };
        flows.iter().map(rule).collect::<Vec<_>>()
    };
    let [both, single] = ["80:8080/both", "81:8081"].map(|rule| Some(rule.to_owned()));
    assert_eq!(
        rules(list(&lab, &[])),
        [
            (Some(80), both.clone()),
            (Some(81), single.clone()),
            (Some(80), both)
        ]
    );
    host.run(&["rm", "80:8080/both"]);
    echo();
    assert_eq!(
        rules(list(&lab, &[])),
        [(Some(80), None), (Some(81), single), (Some(80), None)]
    );
    // The same way by another rule is not the rule of these flows.
    host.run(&["add", "80:8080/both from 10.0.0.0/8"]);
    echo();
    assert_eq!(list(&lab, &["port", "80"]).len(), 2);
    assert_eq!(
        list(&lab, &["rule", "80:8080/both from 10.0.0.0/8"]).len(),
        0
    );
    drop((conns, other));
    host.down();
}

fn filter() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let _server = EchoServer::start(&lab.host, 8080);
    host.up(&["80:8080/both", "90-92:8080"]);
    let mut conns = Vec::new();
    for family in Family::BOTH {
        for (proto, port) in [(Proto::Tcp, 80), (Proto::Udp, 80), (Proto::Tcp, 91)] {
            let mut conn = Conn::to(&lab.client, proto, 0, family.host(port));
            conn.echo(b"hello");
            conns.push(conn);
        }
    }
    for (filter, number) in [
        ("", 6),
        ("port 80", 4),
        ("port 91", 2),
        ("port 90", 0),
        ("port 8080", 6),
        ("port 80 port 91", 6),
        ("from 10.9.1.2", 3),
        ("from fd09:0:0:1::/64", 3),
        ("from 10.9.1.3", 0),
        ("rule 90-92:8080", 2),
        ("state established", 4),
        ("state established rule 80:8080/both from 10.9.0.0/16", 1),
        ("state syn-recv", 0),
        ("state all", 6),
    ] {
        let words: Vec<_> = filter.split_whitespace().collect();
        let flows = list(&lab, &words);
        assert_eq!(flows.len(), number, "`{filter}`: {flows:#?}");
        let lines = text(&lab, &words);
        let heads = usize::from(number > 0) * 2;
        assert_eq!(
            lines.lines().count(),
            heads + 2 * number,
            "`{filter}`: {lines}"
        );
    }
    let alias = lab.host.run(&[PROGRAM, "flows", "--no-header"]);
    assert_eq!(alias.lines().count(), 2 * 6);
    assert!(alias.lines().all(|line| line.len() <= 80), "{alias}");
    let error = host.fails(2, &["connections", "dport", "80"]);
    assert!(error.contains("port PORT"), "{error}");
    drop(conns);
    host.down();
    let host = Host::of(&lab);
    host.fails(3, &["connections"]);
    let mut nothing = host.start(&["connections", "--json"]);
    assert_eq!(nothing.wait().code(), Some(3));
    let nothing: Value = serde_json::from_str(&nothing.out()).expect("JSON");
    assert_eq!(nothing, serde_json::json!({"schema": 1, "running": false}));
}

/// A client with one port for the destination port and for the target port.
fn collision() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let _server = EchoServer::start(&lab.host, 8080);
    host.up(&["80:8080/both"]);
    for proto in PROTOS {
        let (to, direct) = (Family::V4.host(80), Family::V4.host(8080));
        let mut first = Conn::to(&lab.client, proto, 5432, direct);
        first.echo(b"direct");
        let mut second = Conn::to(&lab.client, proto, 5432, to);
        second.echo(b"redirected");
        let flows = list(&lab, &[]);
        let expected = BTreeSet::from([end_of(proto, &second, to)]);
        let flows: Vec<_> = flows
            .into_iter()
            .filter(|flow| flow["protocol"] == format!("{proto:?}").to_lowercase())
            .collect();
        assert_eq!(all_ends(&flows), expected, "{flows:?}");
    }
    host.down();
}

fn watch() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let _server = EchoServer::start(&lab.host, 8080);
    host.up(&["80:8080"]);
    let mut watch = host.start(&["connections", "--json", "--watch=0.1"]);
    let lists = |out: String| {
        let lines = out.lines().map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    wait_for("two lists", || (lists(watch.out()).len() > 1).then_some(()));
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"hello");
    wait_for("the connection", || {
        watch.out().contains("established").then_some(())
    });
    watch.signal(Signal::SIGINT);
    assert_eq!(watch.wait().code(), Some(0));
    for line in lists(watch.out()) {
        let list: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(list["schema"], 1);
    }
    // A reader that goes ends the watch, before there is anything to write.
    let pipe = format!("{PROGRAM} connections --watch=1000s | head -n 1");
    let start = std::time::Instant::now();
    let out = lab.host.run(&["timeout", "30", "sh", "-c", &pipe]);
    assert!(out.starts_with("PROTO"), "{out}");
    assert!(start.elapsed() < Duration::from_secs(20));
    drop(conn);
    host.down();
}

/// A UDP flow that was idle for two minutes is over. The test does not wait, but lets the
/// entry be of that time.
fn idle() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let _server = EchoServer::start(&lab.host, 8080);
    host.up(&["80:8080/udp"]);
    let mut conn = Conn::to(&lab.client, Proto::Udp, 0, Family::V4.host(80));
    conn.echo(b"hello");
    let idle = || {
        let flows = list(&lab, &[]);
        flows.first().and_then(|flow| flow["idle_seconds"].as_u64())
    };
    assert!(idle().is_some());
    wait_for("an idle time", || idle().filter(|idle| *idle >= 3));
    conn.echo(b"hello");
    let now = idle().expect("the flow");
    assert!(now < 3, "{now}");
    age_entries(&host, UDP_IDLE - 5);
    assert!(idle().is_some_and(|idle| idle > 110));
    age_entries(&host, 5);
    assert_eq!(idle(), None);
    conn.echo(b"hello");
    assert!(idle().is_some_and(|idle| idle < 3));
    host.down();
}

/// Makes all entries of the flow tables older, by epochs.
fn age_entries(host: &Host<'_>, epochs: u16) {
    let map = MapData::from_pin(host.pins().join("FLOWS")).expect("the map");
    let mut map = Map::Array(map);
    let mut map = Array::<_, [u64; 16]>::try_from(&mut map).expect("an array");
    for index in 0..map.len() {
        let mut bucket = map.get(&index, 0).expect("a bucket");
        let entries = bucket.iter_mut().skip(1).step_by(2);
        let mut has_entry = false;
        for entry in entries.filter(|entry| **entry != 0) {
            let seen = (*entry & 0xffff) as u16;
            *entry = *entry >> 16 << 16 | u64::from(seen.wrapping_sub(epochs));
            has_entry = true;
        }
        if has_entry {
            map.set(index, bucket, 0).expect("a bucket");
        }
    }
}

/// Thousands of flows, each with its own client.
fn many() {
    const FLOWS: u16 = 5000;
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let _server = EchoServer::start(&lab.host, 8080);
    host.up(&["80:8080/udp"]);
    let to = Family::V4.host(80);
    let socket = |port| lab.client.bind(("10.9.1.2", port));
    let mut expected = BTreeSet::new();
    for port in 20_000..20_000 + FLOWS {
        let socket = socket(port);
        socket.send_to(b"hello", to).expect("send");
        let from = socket.local_addr().expect("an address");
        expected.insert(("udp".to_owned(), from, to));
    }
    wait_for("all flows", || {
        (list(&lab, &[]).len() >= usize::from(FLOWS)).then_some(())
    });
    assert_eq!(all_ends(&list(&lab, &[])), expected);
    host.down();
}

fn not_permitted() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let mut nobody = lab.host.start(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
        &copy_world_executable(&lab.dir.0),
        "connections",
    ]);
    assert_eq!(nobody.wait().code(), Some(4), "{}", nobody.err());
    assert!(nobody.err().contains("needs root"), "{}", nobody.err());
    host.down();
}
