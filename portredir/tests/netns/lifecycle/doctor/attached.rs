//! The doctor on attached programs, ours and those of others, and on the tables of flows.

use super::{Examined, examine, nft};
use crate::lab::foreign::{Foreign, NEXT, PASS};
use crate::lab::program::{PROGRAM, has_tcx};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host, answers, check_reaches};
use crate::peer::conn::Proto;
use crate::peer::echo::EchoServer;
use crate::peer::tcp_variant;
use crate::{Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add("doctor/detached", &["nft", "bpftool"], detached);
    tests.add("doctor/silent_watcher", &["nft"], silent_watcher);
    tests.add(
        "doctor/shared_hooks",
        &["nft", "python3", "tc"],
        shared_hooks,
    );
    tests.add("doctor/flow_tables", &["nft"], flow_tables);
    tests.add("doctor/mptcp_server", &["nft", "python3"], mptcp_server);
    tests.add("doctor/facts", &["nft"], facts);
}

/// A program that somebody detached, which no watcher attaches again.
fn detached() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", "80:8080"]);
    host.kill_watcher();
    let link = format!("{}/if11-ingress", host.pins().display());
    lab.host
        .run(&["bpftool", "link", "detach", "pinned", &link]);
    let examined = Examined::of(&lab, &[]);
    examined.one("watcher", "no watcher process runs", "portredir watch");
    let fix = examined.one(
        "interfaces",
        "h0: tcx ingress portredir_in: missing",
        "portredir save - | portredir up --config -",
    );
    let fix = fix.replace("portredir save", &format!("{PROGRAM} save"));
    let fix = fix.replace("portredir up", &format!("{PROGRAM} up"));
    lab.host.run(&["sh", "-c", &fix]);
    Examined::of(&lab, &[]).nothing();
    host.down();
}

fn silent_watcher() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let pid = host.status()["pid"].as_u64().expect("a pid");
    lab.host.run(&["kill", "-STOP", &pid.to_string()]);
    let what = format!("the watcher, process {pid}, does not answer");
    let fix = Examined::of(&lab, &[]).only("watcher", &what, &format!("kill -9 {pid}"));
    assert!(fix.ends_with("; portredir watch"), "{fix}");
    lab.host.run(&["kill", "-CONT", &pid.to_string()]);
    Examined::of(&lab, &[]).nothing();
    host.down();
}

/// Programs of others before and behind ours, and filters of clsact, on a redirect that
/// runs and before it runs.
fn shared_hooks() {
    let lab = Lab::new(&CELL);
    if !lab.host.enter(has_tcx) {
        skip("needs TCX, Linux 6.6");
    }
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let check = "shared-hooks";
    let attach =
        |position, name| Foreign::attach(&lab.host, ("ingress", position), "h0", (name, NEXT));
    let shaper = attach("first", "shaper");
    examine(&lab, "80:8080").only(check, "h0: shaper (id ", "bpftool prog show id ");
    drop(shaper);
    host.up(&["--engine", "tc", "80:8080"]);
    Examined::of(&lab, &[]).nothing();
    let later = attach("last", "later");
    Examined::of(&lab, &[]).only(
        check,
        "runs behind portredir (tcx)",
        "bpftool prog show id ",
    );
    let first = attach("first", "shaper");
    let examined = Examined::of(&lab, &[]);
    examined.one(
        check,
        "runs before portredir_in (tcx ingress)",
        "bpftool prog show id ",
    );
    examined.one(check, "h0: later (id ", "bpftool prog show id ");
    assert_eq!(examined.0["findings"].as_array().expect("a list").len(), 2);
    drop((first, later));
    Examined::of(&lab, &[]).nothing();
    let qdisc = ["tc", "qdisc", "add", "dev", "h0", "clsact"];
    lab.host.run(&qdisc);
    Examined::of(&lab, &[]).nothing();
    let filter =
        "tc filter add dev h0 ingress protocol ip prio 7 u32 match ip dport 9 0xffff flowid 1:1";
    lab.host.run(&filter.split(' ').collect::<Vec<_>>());
    Examined::of(&lab, &[]).only(
        check,
        "filter u32 with priority 7 runs behind",
        "tc filter show",
    );
    lab.host.run(&["tc", "qdisc", "del", "dev", "h0", "clsact"]);
    let xdp = Foreign::attach(&lab.host, ("xdp", "generic"), "h0", ("balancer", PASS));
    Examined::of(&lab, &[]).only(check, "balancer (id ", "bpftool prog show id ");
    drop(xdp);
    Examined::of(&lab, &[]).nothing();
    host.down();
}

/// More UDP clients than the table is made for.
fn flow_tables() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["--max-udp-flows", "1024", "80:8080/both"]);
    check_reaches(&lab, 80, &server);
    Examined::of(&lab, &[]).nothing();
    let to = Family::V4.host(80);
    let clients: Vec<_> = (0..900).map(|_| lab.client.bind("10.9.1.2:0")).collect();
    for client in &clients {
        client.send_to(b"one", to).expect("send");
    }
    let fix = Examined::of(&lab, &[]).only(
        "flow-tables",
        "the table of udp flows has ",
        "--max-udp-flows 4096",
    );
    assert!(
        fix.starts_with("portredir save - | portredir up --config -"),
        "{fix}"
    );
    host.down();
}

/// A server with MPTCP, whose sockets some kernels do not accept in maps.
fn mptcp_server() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let on = "0.0.0.0:8080".parse().expect("an address");
    let _server = tcp_variant::start_server(&lab.host, "mptcp-server", on);
    host.up(&["--engine", "socket", "80:8080 from 0.0.0.0/0"]);
    let is_served = answers(&lab, Proto::Tcp, 80);
    if is_served {
        skip("this kernel accepts MPTCP sockets in maps");
    }
    let examined = Examined::of(&lab, &[]);
    let what = "the server on 8080/tcp is out of reach: the server uses MPTCP";
    let fix = examined.only("socket-lookup", what, "--engine auto");
    let fix = fix.split("; or").next().expect("a command");
    let fix = fix.replace("portredir save", &format!("{PROGRAM} save"));
    let fix = fix.replace("portredir up", &format!("{PROGRAM} up"));
    lab.host.run(&["sh", "-c", &fix]);
    Examined::of(&lab, &[]).nothing();
    assert!(answers(&lab, Proto::Tcp, 80));
    host.down();
}

/// Facts that are no faults: how each interface is attached, and tracked connections.
fn facts() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let fact = |examined: &Examined, check: &str| {
        let passed = examined.0["passed"].as_array().expect("a list").iter();
        let facts = passed.filter(|passed| passed["check"] == check);
        let facts: Vec<_> = facts.filter_map(|passed| passed["fact"].as_str()).collect();
        facts.join("\n")
    };
    let examined = examine(&lab, "80:8080");
    examined.nothing();
    let xdp = fact(&examined, "xdp");
    assert!(xdp.starts_with("h0: engine tc, native XDP"), "{xdp}");
    assert!(
        xdp.contains("MTU 1500 (without multi-buffer at most 3498), LRO off"),
        "{xdp}"
    );
    assert!(fact(&examined, "conntrack").starts_with("no connection is tracked"));
    nft(
        &lab,
        "table inet lab { chain input { type filter hook input priority 0; ct state established accept; }; }",
    );
    assert!(answers(&lab, Proto::Tcp, 8080));
    let examined = examine(&lab, "80:8080");
    examined.nothing();
    let conntrack = fact(&examined, "conntrack");
    assert!(
        conntrack.contains("tracked; for TCP, --engine socket"),
        "{conntrack}"
    );
}
