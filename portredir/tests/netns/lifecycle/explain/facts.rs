//! Single flows in the words of `explain`, which leaves everything as it is.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::Value;

use super::Explainer;
use crate::lab::foreign::{Foreign, NEXT};
use crate::lab::program::{PROGRAM, Redirector, has_tcx};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::peer::echo::EchoServer;
use crate::peer::listener::Listen;
use crate::{Tests, skip};

pub fn add(tests: &mut Tests) {
    for engine in ["tc", "xdp", "socket", "auto"] {
        let name = format!("{engine}/explain_changes_nothing");
        tests.add(name, &["bpftool", "sha256sum"], move || {
            changes_nothing(engine);
        });
    }
    tests.add("outlive/explain_words", &[], words);
    tests.add("outlive/explain_mistakes", &["setpriv"], mistakes);
    tests.add("outlive/explain_firewall", &["nft"], firewall);
    tests.add("outlive/explain_hooks", &["python3"], hooks);
    tests.add("outlive/explain_process", &[], process);
    tests.add("tc/explain_foreground", &[], foreground);
}

/// Maps whose elements belong to sockets, and cannot be listed.
const OF_SOCKETS: [&str; 3] = ["DIALLED", "LISTENERS", "SOCKETS"];

/// All bytes of all maps of a redirect, each map as its sum.
pub fn bytes(lab: &Lab, pins: &Path) -> Vec<String> {
    const SUM: &str = "for map in \"$@\"; do \
        echo \"$(bpftool map dump pinned \"$map\" | sha256sum) $map\"; done";
    let files = std::fs::read_dir(pins).expect("the pins");
    let mut maps: Vec<_> = files
        .map(|file| {
            file.expect("a pin")
                .file_name()
                .into_string()
                .expect("text")
        })
        .filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .filter(|name| !OF_SOCKETS.contains(&name.as_str()))
        .map(|name| pins.join(name).to_str().expect("text").to_owned())
        .collect();
    maps.sort();
    assert!(maps.len() >= 20, "{maps:?}");
    let mut args = vec!["sh", "-c", SUM, "sh"];
    args.extend(maps.iter().map(String::as_str));
    let sums = lab.host.run(&args);
    sums.lines().map(str::to_owned).collect()
}

fn changes_nothing(engine: &str) {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let rules = if engine == "socket" {
        ["80:8080", "81:8080 from 10.9.0.0/16"]
    } else {
        ["80:8080/both", "81:8080/both from 10.9.0.0/16"]
    };
    host.run(&[
        "up",
        "--iface",
        "h0,lo",
        "--engine",
        engine,
        "--max-tcp-flows",
        "2048",
        "--max-udp-flows",
        "1024",
        rules[0],
        rules[1],
    ]);
    let mut open = Vec::new();
    for from in [&lab.client, &lab.host] {
        for proto in PROTOS {
            if proto == Proto::Udp && engine == "socket" {
                continue;
            }
            let mut conn = Conn::to(from, proto, 0, Family::V4.host(80));
            conn.echo(b"before");
            open.push(conn);
        }
    }
    let pins = host.pins();
    let before = bytes(&lab, &pins);
    let mut explainer = Explainer::start(&lab.host);
    let known = open[0].local();
    for flow in [
        "tcp 10.9.1.2 to 10.9.1.1:80 on h0".to_owned(),
        format!("tcp {known} to 10.9.1.1:80 on h0"),
        "tcp 10.9.1.2 to 10.9.1.1:8080 on h0".to_owned(),
        "tcp 10.9.1.2 to 10.9.1.1:81 on h0".to_owned(),
        "udp 10.9.1.2 to 10.9.1.1:80 on h0".to_owned(),
        "udp fd09:0:0:1::2 to [fd09:0:0:1::1]:80 on h0".to_owned(),
        "tcp local to 127.0.0.1:80".to_owned(),
        "udp local:5000 to 127.0.0.1:80".to_owned(),
        "tcp local:5000 to 10.9.1.1:81".to_owned(),
    ] {
        let answer = explainer.ask(&flow);
        assert!(answer["verdict"].is_string(), "{answer}");
    }
    let after = bytes(&lab, &pins);
    assert_eq!(before, after);
    // The very same flow, when it is real, leaves its traces.
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"after");
    assert_ne!(after, bytes(&lab, &pins));
    drop((open, conn, explainer));
    host.down();
}

/// The answer about one flow.
pub fn json(host: &Host<'_>, flow: &str) -> Value {
    let words = flow.split(' ');
    let args: Vec<_> = ["explain", "--json"].into_iter().chain(words).collect();
    serde_json::from_str(&host.run(&args)).expect("JSON")
}

fn words() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", "80:8080", "80:8081 from 192.0.2.0/24"]);
    let text = host.run(&[
        "explain",
        "tcp",
        "10.9.1.2:40000",
        "->",
        "10.9.1.1:80",
        "on",
        "h0",
    ]);
    for line in [
        "flow     tcp 10.9.1.2:40000 -> 10.9.1.1:80 on h0",
        "verdict  redirected to port 8080 by 80:8080",
        "program  portredir_in on h0, engine tc, hook ",
        "before   tcp 10.9.1.2:40000 -> 10.9.1.1:80",
        "after    tcp 10.9.1.2:40000 -> 10.9.1.1:8080",
        "wins     80:8080: all its conditions hold",
        "client 10.9.1.2 is not in 192.0.2.0/24",
        "route    the kernel delivers it to this host (rp_filter: ",
        "listens on 8080/tcp ([::])",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed(&text).contains(&squeezed(line)), "{line}: {text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    let answer = json(&host, "tcp 10.9.1.2 to 192.0.2.7:80 on h0");
    assert_eq!(answer["verdict"], "passed");
    assert_eq!(answer["reason"], "not_local");
    let answer = json(&host, "tcp local to 127.0.0.1:80");
    assert_eq!(answer["method"], "none");
    assert_eq!(answer["why"], "no program of portredir is attached to lo");
    // The kernel filters by source address; its own answer counts.
    lab.host.sysctl("ipv4/conf/all/rp_filter", "1");
    let answer = json(&host, "tcp 203.0.113.9 to 10.9.1.1:80 on h0");
    let route = answer["behind"]["route"].as_str().expect("a text");
    assert!(route.contains("refuses 203.0.113.9 on h0"), "{route}");
    assert!(route.contains("(rp_filter: strict)"), "{route}");
    host.down();
}

fn mistakes() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let ask = ["explain", "tcp", "10.9.1.2", "to", "10.9.1.1:80"];
    assert!(host.fails(3, &ask).contains("not running"));
    host.up(&["--engine", "tc", "80:8080"]);
    let shell = ["explain", "tcp", "10.9.1.2", "-", "on", "h0"];
    assert!(host.fails(2, &shell).contains("write `to`"));
    let error = host.fails(
        1,
        &[
            "explain",
            "tcp",
            "10.9.1.2",
            "to",
            "10.9.1.1:80",
            "on",
            "h9",
        ],
    );
    assert!(
        error.contains("no interface h9; this host has: lo, h0"),
        "{error}"
    );
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        PROGRAM,
    ];
    let nobody: Vec<_> = nobody.into_iter().chain(ask).collect();
    let mut process = lab.host.start(&nobody);
    assert_eq!(process.wait().code(), Some(4), "{}", process.err());
    let script = "printf '%s\\n' 'ARP, Request who-has 10.9.1.1' \
        'IP 10.9.1.2.40000 > 10.9.1.1.80: Flags [S], seq 1' | $0 explain -";
    let mut process = lab.host.start(&["sh", "-c", script, PROGRAM]);
    assert_eq!(process.wait().code(), Some(2));
    assert!(
        process.err().contains("line 1: expected tcp or udp"),
        "{}",
        process.err()
    );
    assert!(
        process.out().contains("redirected to port 8080"),
        "{}",
        process.out()
    );
    host.down();
}

fn firewall() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let _server = Listen::on(Ipv4Addr::LOCALHOST, 8080).start(&lab.host, "loopback");
    host.up(&["--engine", "tc", "80:8080"]);
    lab.host.run(&[
        "nft",
        "table inet lab {
            chain input {
                type filter hook input priority 0; policy accept;
                iifname h0 ip saddr 10.9.1.2 tcp dport 8080 drop
                meta mark 7 drop
            }
        }",
    ]);
    let answer = json(&host, "tcp 10.9.1.2 to 10.9.1.1:80 on h0");
    let firewall = &answer["behind"]["firewall"];
    assert_eq!(firewall[0]["verdict"], "drops", "{answer}");
    let rule = firewall[0]["by"][0].as_str().expect("a rule");
    assert!(rule.contains("saddr 10.9.1.2"), "{rule}");
    assert_eq!(firewall[1], Value::Null);
    let listeners = answer["behind"]["listeners"].as_array().expect("a list");
    assert_eq!(listeners[0], "nobody listens on 8080/tcp for 10.9.1.1");
    let other = listeners[1].as_str().expect("a text");
    assert!(
        other.ends_with("listens on 8080/tcp (127.0.0.1)"),
        "{other}"
    );
    // The drop is true, and another client meets a condition that cannot be known.
    let limit = std::time::Duration::from_millis(300);
    let to = Family::V4.host(80);
    let refused = Conn::connect_within(limit, &lab.client, Proto::Tcp, (0, to));
    let kind = refused.err().map(|error| error.kind());
    assert_ne!(kind, Some(std::io::ErrorKind::ConnectionRefused));
    let answer = json(&host, "tcp 10.9.1.7 to 10.9.1.1:80 on h0");
    assert_eq!(answer["behind"]["firewall"][0]["verdict"], "not evaluated");
    host.down();
}

fn hooks() {
    if !has_tcx() {
        skip("needs TCX");
    }
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", "80:8080"]);
    let first = Foreign::attach(&lab.host, ("ingress", "first"), "h0", ("before_us", NEXT));
    let last = Foreign::attach(&lab.host, ("ingress", "last"), "h0", ("behind_us", NEXT));
    let answer = json(&host, "tcp 10.9.1.2 to 10.9.1.1:80 on h0");
    let hook = &answer["behind"]["programs"][0];
    assert_eq!(hook["hook"], "tcx ingress", "{answer}");
    let programs = hook["programs"].as_array().expect("a list");
    let names: Vec<_> = programs.iter().filter_map(Value::as_str).collect();
    assert!(names[0].starts_with("before_us (id "), "{names:?}");
    assert_eq!(names[1], "portredir_in");
    assert!(names[2].starts_with("behind_us (id "), "{names:?}");
    drop((first, last));
    host.down();
}

fn process() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", "80:8080"]);
    let mut redirected = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    redirected.echo(b"by 80");
    let mut direct = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080));
    direct.echo(b"by 8080");
    let pid = std::process::id().to_string();
    let text = host.run(&["explain", "--json", "--pid", &pid]);
    let json: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["pid"], std::process::id());
    let listening = json["listening"].as_array().expect("a list");
    let of_8080 = listening.iter().find(|one| one["port"] == 8080);
    assert_eq!(of_8080.expect("the server")["rules"][0], "80:8080");
    let flows = json["flows"].as_array().expect("a list");
    let flow = |own: &Conn| {
        let client = own.local().to_string();
        let mut flows = flows.iter();
        let flow = flows.find(|flow| {
            let text = flow["flow"].as_str().expect("a text");
            text.contains(&format!("{client} ->"))
        });
        flow.unwrap_or_else(|| panic!("{client}: {json}")).clone()
    };
    let by_80 = flow(&redirected);
    assert!(
        by_80["flow"]
            .as_str()
            .expect("a text")
            .contains("-> 10.9.1.1:80 ")
    );
    assert_eq!(by_80["known_flow"], "known: its packets go on to port 8080");
    let by_8080 = flow(&direct);
    assert!(
        by_8080["flow"]
            .as_str()
            .expect("a text")
            .contains("-> 10.9.1.1:8080 ")
    );
    assert_eq!(by_8080["verdict"], "passed");
    drop((redirected, direct, server));
    host.down();
}

fn foreground() {
    let lab = Lab::new(&CELL);
    let redirector = Redirector::start(
        &lab.host,
        &["--iface", "h0", "--engine", "tc", "79:8079", "80:8080/udp"],
    );
    let args = [
        PROGRAM,
        "explain",
        "--json",
        "udp",
        "10.9.1.2",
        "to",
        "10.9.1.1:80",
    ];
    let answer: Value = serde_json::from_str(&lab.host.run(&args)).expect("JSON");
    assert_eq!(answer["rule"], "80:8080/udp", "{answer}");
    assert_eq!(answer["after"]["dst"], "10.9.1.1:8080");
    let report = redirector.stop();
    assert_eq!(report["rules"][1]["packets"], 0);
}
