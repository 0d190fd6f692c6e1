//! `portredir trace`: the lines are the packets that were sent, and nothing is left on.

mod forwarded;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::MapData;
use nix::sys::signal::Signal;
use portredir::sys::mmap::Mapped;
use portredir_common::map::packet_path::{PacketPath, TRACED};
use serde_json::Value;

use crate::lab::process::{Process, wait_for};
use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::peer::echo::EchoServer;
use crate::peer::raw::{RawSender, udp};
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "trace", &[], packets);
    tests.add("outlive/trace_local_clients", &[], local_clients);
    tests.add("socket/trace", &[], sockets);
    tests.add("outlive/trace_conditions", &[], conditions);
    tests.add("outlive/trace_filters", &[], filters);
    tests.add("outlive/trace_killed", &[], killed);
    tests.add("outlive/trace_twice", &[], twice);
    tests.add("outlive/trace_ends", &[], ends);
    tests.add("outlive/trace_rate", &[], rate);
    tests.add("outlive/trace_pcap", &[], pcap);
    tests.add("outlive/trace_verbose", &[], verbose);
    tests.add("outlive/trace_forwarded", &[], forwarded::packets);
}

/// A trace that has begun.
fn start(lab: &Lab, args: &[&str]) -> Process {
    let mut all = vec![PROGRAM, "trace", "--json"];
    all.extend(args);
    let mut process = lab.host.start(&all);
    process.wait_for_words("tracing");
    process
}

fn lines(trace: &Process) -> Vec<Value> {
    let out = trace.out();
    let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// Waits for a line; `wanted` has pairs of a pointer and the value there.
fn wait_for_line(trace: &Process, wanted: &[(&str, &str)]) -> Value {
    let is_it = |line: &Value| {
        let is =
            |(at, value): &(&str, &str)| line.pointer(at).and_then(Value::as_str) == Some(*value);
        wanted.iter().all(is)
    };
    wait_for(&format!("a line with {wanted:?}"), || {
        lines(trace).into_iter().find(is_it)
    })
}

/// Waits for the line of a segment with these flags.
fn wait_for_segment<'a>(trace: &Process, wanted: &[(&'a str, &'a str)], flags: &'a str) -> Value {
    let mut wanted = wanted.to_vec();
    wanted.push(("/flags", flags));
    wait_for_line(trace, &wanted)
}

/// Ends a trace by Ctrl-C.
fn end(mut trace: Process) -> Vec<Value> {
    trace.signal(Signal::SIGINT);
    assert!(trace.wait().success(), "{}", trace.err());
    lines(&trace)
}

/// The lines of a conversation by port 80 are those packets.
fn check_conversation(trace: &Process, client: SocketAddr, (proto, family): (Proto, Family)) {
    let protocol = match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    };
    let [client, dialled, target] =
        [client, family.host(80), family.host(8080)].map(|end| end.to_string());
    let [client, dialled, target] = [&client, &dialled, &target].map(String::as_str);
    let forth = [
        ("/protocol", protocol),
        ("/before/src", client),
        ("/after/src", client),
        ("/before/dst", dialled),
        ("/after/dst", target),
        ("/reason", "redirected"),
        ("/verdict", "pass"),
        ("/rule", "80:8080/both"),
        ("/interface", "h0"),
    ];
    let back = [
        ("/protocol", protocol),
        ("/hook", "egress"),
        ("/before/src", target),
        ("/after/src", dialled),
        ("/before/dst", client),
        ("/after/dst", client),
        ("/reason", "restored"),
        ("/rule", "80:8080/both"),
        ("/interface", "h0"),
    ];
    wait_for_line(trace, &forth);
    wait_for_line(trace, &back);
    if proto == Proto::Tcp {
        let syn = wait_for_segment(trace, &forth, "S");
        let answer = wait_for_segment(trace, &back, "S.");
        wait_for_segment(trace, &forth, "P.");
        assert!(
            syn["time"].as_str() <= answer["time"].as_str(),
            "{syn} {answer}"
        );
    }
}

fn packets(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::beside(cell, &lab, &["80:8080/both"]);
    // A connection that is there before the trace.
    let mut old = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    old.echo(b"before the trace");
    let trace = start(&lab, &[]);
    for family in Family::BOTH {
        for proto in PROTOS {
            let mut conn = Conn::to(&lab.client, proto, 0, family.host(80));
            conn.echo(b"a message");
            check_conversation(&trace, conn.local(), (proto, family));
        }
    }
    old.echo(b"during the trace");
    let old_client = old.local().to_string();
    wait_for_line(
        &trace,
        &[("/before/src", &old_client), ("/reason", "redirected")],
    );
    let lines = end(trace);
    let times: Vec<_> = lines.iter().map(|line| line["time"].as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");
    old.echo(b"after the trace");
    redirector.finish(&lab);
}

fn local_clients() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let rules = ["80:8080/both", "81:8080 from 192.0.2.0/24"];
    host.run(&["up", "--iface", "h0,lo", rules[0], rules[1]]);
    let trace = start(&lab, &[]);
    let pid = std::process::id().to_string();
    for family in Family::BOTH {
        for proto in PROTOS {
            let mut conn = Conn::to(&lab.host, proto, 0, family.host(80));
            conn.echo(b"a local client");
        }
        let [dialled, target] = [80, 8080].map(|port| family.host(port).to_string());
        let line = wait_for_line(
            &trace,
            &[
                ("/hook", "connect"),
                ("/before/dst", &dialled),
                ("/after/dst", &target),
                ("/reason", "redirected"),
                ("/rule", "80:8080/both"),
            ],
        );
        assert_eq!(line["pid"].to_string(), pid, "{line}");
    }
    let dialled = Family::V4.host(81).to_string();
    let _ = Conn::connect(&lab.host, Proto::Tcp, 0, Family::V4.host(81));
    let line = wait_for_line(
        &trace,
        &[("/before/dst", &dialled), ("/reason", "no_match")],
    );
    assert_eq!(line["failed"][0]["condition"], "from", "{line}");
    end(trace);
    host.down();
}

fn sockets() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["--engine", "socket", "80:8080", "81:8080 from 192.0.2.0/24"]);
    let trace = start(&lab, &[]);
    for family in Family::BOTH {
        let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, family.host(80));
        conn.echo(b"by socket");
        let [client, dialled] = [conn.local(), family.host(80)].map(|end| end.to_string());
        wait_for_line(
            &trace,
            &[
                ("/hook", "sk_lookup"),
                ("/protocol", "tcp"),
                ("/before/src", &client),
                ("/before/dst", &dialled),
                ("/reason", "redirected"),
            ],
        );
    }
    assert!(Conn::connect(&lab.client, Proto::Tcp, 0, Family::V4.host(81)).is_err());
    let line = wait_for_line(&trace, &[("/hook", "sk_lookup"), ("/reason", "no_match")]);
    assert_eq!(line["failed"][0]["condition"], "from", "{line}");
    end(trace);
    host.down();
}

/// A packet to the port of a rule whose conditions do not hold has its line, with the
/// condition.
fn conditions() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&[
        "81:8080/both from 192.0.2.0/24",
        "82:8080/both on c9",
        "10.9.1.77:83:8080/both",
    ]);
    let trace = start(&lab, &[]);
    for (port, rule, condition) in [
        (81, "81:8080/both from 192.0.2.0/24", "from"),
        (82, "82:8080/both on c9", "on"),
        (83, "10.9.1.77:83:8080/both", "address"),
    ] {
        for family in Family::BOTH {
            for proto in PROTOS {
                let to = family.host(port);
                let conn = Conn::connect(&lab.client, proto, 0, to);
                if let Ok(mut conn) = conn {
                    let _ = conn.send(b"to nobody");
                }
                let protocol = if proto == Proto::Tcp { "tcp" } else { "udp" };
                let line = wait_for_line(
                    &trace,
                    &[
                        ("/hook", "ingress"),
                        ("/protocol", protocol),
                        ("/before/dst", &to.to_string()),
                        ("/after/dst", &to.to_string()),
                        ("/reason", "no_match"),
                        ("/verdict", "pass"),
                        ("/failed/0/rule", rule),
                        ("/failed/0/condition", condition),
                    ],
                );
                assert_eq!(line["failed"].as_array().map(Vec::len), Some(1), "{line}");
            }
        }
    }
    end(trace);
    let status = host.status();
    let count = status["passes"]["no_match"].as_u64();
    assert!(count >= Some(12), "{count:?}");
    host.down();
}

fn filters() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["80:8080/both", "81:8080/both"]);
    for (words, code) in [
        (&["port"][..], 2),
        (&["sideways"], 2),
        (&["85:8080"], 2),
        (&["tcp", "tcp"], 2),
    ] {
        let mut args = vec!["trace"];
        args.extend(words);
        host.fails(code, &args);
    }
    let talk = |port, proto| {
        Conn::to(&lab.client, proto, 0, Family::V4.host(port)).echo(b"filtered");
    };
    let mut trace = start(
        &lab,
        &[
            "81:8080/both",
            "udp",
            "on",
            "h0",
            "from",
            "10.9.1.2",
            "--count",
            "1",
        ],
    );
    talk(80, Proto::Udp);
    talk(81, Proto::Tcp);
    talk(81, Proto::Udp);
    assert!(trace.wait().success(), "{}", trace.err());
    let lines = lines(&trace);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["before"]["dst"], Family::V4.host(81).to_string());
    assert_eq!(lines[0]["protocol"], "udp");
    // Text, of packets that do not pass.
    let mut trace = lab
        .host
        .start(&[PROGRAM, "trace", "port", "80", "--count", "1"]);
    trace.wait_for_words("tracing");
    talk(80, Proto::Udp);
    assert!(trace.wait().success(), "{}", trace.err());
    let text = trace.out();
    assert!(
        text.contains("-> 10.9.1.1:80=>8080 pass redirected 80:8080/both\n"),
        "{text}"
    );
    host.down();
}

/// The word of the map that every packet reads.
fn hot(host: &Host<'_>) -> Mapped<PacketPath<AtomicU64>> {
    let map = MapData::from_pin(host.pins().join("HOT")).expect("the map");
    Mapped::new(map.fd().as_fd(), 1).expect("memory")
}

/// A process that traces may be killed: the next packet after two seconds turns the trace off.
fn killed() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["80:8080/both"]);
    let hot = hot(&host);
    let is_traced = || hot[0].generation.load(Relaxed) & TRACED != 0;
    assert!(!is_traced());
    let mut trace = start(&lab, &[]);
    assert!(is_traced());
    // A change of rules does not turn the trace off.
    host.run(&["add", "81:8080"]);
    host.run(&["rm", "81:8080"]);
    assert!(is_traced());
    trace.kill();
    assert!(is_traced());
    wait_for("the trace to be off", || {
        Conn::to(&lab.client, Proto::Udp, 0, Family::V4.host(80)).echo(b"after the kill");
        (!is_traced()).then_some(())
    });
    // What it left unread is not shown to the next one.
    let trace = start(&lab, &[]);
    assert!(end(trace).is_empty());
    assert!(!is_traced());
    host.down();
}

fn twice() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.fails(3, &["trace"]);
    host.up(&["80:8080"]);
    let trace = start(&lab, &[]);
    let error = host.fails(1, &["trace"]);
    let pid = trace.id().to_string();
    assert!(
        error.contains("another process traces") && error.contains(&pid),
        "{error}"
    );
    end(trace);
    end(start(&lab, &[]));
    host.down();
}

/// A trace ends with its redirect.
fn ends() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let mut trace = start(&lab, &[]);
    host.down();
    assert!(trace.wait().success());
    assert!(
        trace.err().contains("the redirect has ended"),
        "{}",
        trace.err()
    );
    let cell = Cell {
        engine: "tc",
        ..CELL
    };
    let redirector = Redirector::beside(&cell, &lab, &["80:8080"]);
    let mut trace = start(&lab, &[]);
    redirector.stop();
    assert!(trace.wait().success());
    assert!(
        trace.err().contains("the redirect has ended"),
        "{}",
        trace.err()
    );
}

/// Too many packets are counted and not shown, and all of them are redirected.
fn rate() {
    const PACKETS: u16 = 20_000;
    let lab = Lab::new(&CELL);
    let socket = lab.host.bind((std::net::Ipv6Addr::UNSPECIFIED, 8080));
    let host = Host::of(&lab);
    host.up(&["80:8080/udp"]);
    let mut trace = start(&lab, &[]);
    let (from, to) = (Family::V4.addr(1, 2), Family::V4.host(80));
    let packets: Vec<_> = (0..PACKETS)
        .map(|i| udp(SocketAddr::new(from, 1000 + i), to, b"x"))
        .collect();
    RawSender::new(&lab.client).send(to.ip(), &packets);
    drop(socket);
    wait_for("the count of what is not shown", || {
        trace
            .err()
            .contains("not shown: too many at once")
            .then_some(())
    });
    trace.signal(Signal::SIGINT);
    assert!(trace.wait().success(), "{}", trace.err());
    let err = trace.err();
    let lost = err.lines().filter_map(|line| {
        let (number, rest) = line.split_once(' ')?;
        rest.contains("not shown")
            .then(|| number.parse::<usize>().expect("a number"))
    });
    let lost: usize = lost.sum();
    let shown = lines(&trace);
    let shown = shown
        .iter()
        .filter(|line| line["reason"] == "redirected")
        .count();
    let status = host.status();
    let redirected = status["rules"][0]["packets"].as_u64().expect("a number");
    let redirected = usize::try_from(redirected).expect("a number");
    // What the host answers, when nobody listens any more, is lost too.
    assert!(
        shown + lost >= redirected,
        "{shown} and {lost} of {redirected}"
    );
    assert!(shown > 100 && lost > 1000, "{shown} and {lost}");
    assert!(redirected > usize::from(PACKETS) / 2, "{redirected}");
    host.down();
}

/// The file has each packet as it came and as it went on, and others can read it.
fn pcap() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["80:8080/both"]);
    let file = lab.dir.0.join("trace.pcapng");
    let path = file.to_str().expect("text");
    let trace = start(&lab, &["udp", "--pcap", path]);
    let mut conn = Conn::to(&lab.client, Proto::Udp, 0, Family::V4.host(80));
    conn.echo(b"0123456789");
    let client = conn.local().port();
    wait_for_line(&trace, &[("/reason", "restored")]);
    end(trace);
    let text = lab.host.run(&["tcpdump", "-n", "-v", "-r", path]);
    for words in [
        format!("10.9.1.2.{client} > 10.9.1.1.80: "),
        format!("10.9.1.2.{client} > 10.9.1.1.8080: "),
        format!("10.9.1.1.8080 > 10.9.1.2.{client}: "),
        format!("10.9.1.1.80 > 10.9.1.2.{client}: "),
    ] {
        assert_eq!(text.matches(&words).count(), 1, "{words} in {text}");
    }
    host.down();
}

/// With `-v` a run in the foreground traces itself.
fn verbose() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let args = [
        "-v",
        "--iface",
        "h0",
        "80:8080/both",
        "81:8080 from 192.0.2.0/24",
    ];
    let redirector = Redirector::start(&lab.host, &args);
    let mut conn = Conn::to(&lab.client, Proto::Udp, 0, Family::V4.host(80));
    conn.echo(b"logged");
    let _ = Conn::connect(&lab.client, Proto::Tcp, 0, Family::V4.host(81));
    let client = conn.local();
    let line = format!("h0 ingress udp {client} -> 10.9.1.1:80=>8080 pass redirected");
    wait_for("lines in the log", || {
        let log = redirector.process.err();
        (log.contains(&line) && log.contains("pass no_match")).then_some(())
    });
    redirector.stop();
}
