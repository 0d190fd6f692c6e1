//! `add`, `rm` and `apply`: the running rules change, open connections go on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::message::{ANOTHER_COMMAND, IFACE_CANNOT_CHANGE};
use crate::lab::process::{DEADLINE, Process, note, slow, wait_for};
use crate::lab::program::{PROGRAM, copy_world_executable};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host, answers};
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::peer::echo::EchoServer;
use crate::peer::many::{HttpClients, sized_http_server};
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    tests.add("outlive/changes_keep_flows", &[], changes_keep_flows);
    tests.add("outlive/two_writers", &[], two_writers);
    for engine in ["tc", "xdp"] {
        tests.add(
            format!("{engine}/change_under_load"),
            &["curl", "python3", "iperf3"],
            move || change_under_load(engine),
        );
    }
}

fn changes_keep_flows() {
    let lab = Lab::new(&CELL);
    let [first, second, third] = [8080, 9090, 7070].map(|port| EchoServer::start(&lab.host, port));
    let host = Host::of(&lab);
    host.up(&["80:8080/both", "90:8080/both"]);
    let connect = |port| PROTOS.map(|proto| Conn::to(&lab.client, proto, 0, Family::V4.host(port)));
    let exchange = |conns: &mut [Conn], server: &EchoServer, when: &str| {
        for (conn, proto) in conns.iter_mut().zip(PROTOS) {
            let message = format!("{proto:?} {when}");
            conn.echo(message.as_bytes());
            server.peer(proto, message.as_bytes());
        }
    };
    let mut of_first = connect(80);
    exchange(&mut of_first, &first, "at first");
    let file = lab.dir.0.join("rules.toml");
    let apply = |text: &str, args: &[&str]| {
        fs::write(&file, text).expect("write a file");
        let mut all = vec!["apply", "-f", file.to_str().expect("text")];
        all.extend(args);
        host.run(&all)
    };
    let changed = "rules = ['80:9090/both', '90:8080/both']";
    let diff = "- 80:8080/both\n+ 80:9090/both\n";
    assert_eq!(apply(changed, &["--dry-run"]), diff);
    exchange(&mut connect(80), &first, "before the change");
    assert_eq!(apply(changed, &[]), diff);
    let mut of_second = connect(80);
    for round in 0..3 {
        exchange(&mut of_first, &first, &format!("after a change, {round}"));
        exchange(&mut of_second, &second, &format!("new, {round}"));
    }
    apply("rules = ['80:7070/both', '90:8080/both']", &[]);
    let mut of_third = connect(80);
    exchange(&mut of_first, &first, "after two changes");
    exchange(&mut of_second, &second, "after one change");
    exchange(&mut of_third, &third, "new");
    apply("rules = ['90:8080/both']", &[]);
    for (conns, server) in [
        (&mut of_first, &first),
        (&mut of_second, &second),
        (&mut of_third, &third),
    ] {
        exchange(conns, server, "without a rule");
    }
    assert!(!answers(&lab, Proto::Tcp, 80));
    refuses_to_change_interfaces(&host, &file);
    // Datagrams of a client port do not stay with a server that is gone.
    drop(third);
    let mut udp = Conn::to(
        &lab.client,
        Proto::Udp,
        of_third[1].local().port() + 1,
        Family::V4.host(90),
    );
    udp.echo(b"by another rule");
    host.down();
}

/// `apply` changes rules alone: a file with another option is refused.
fn refuses_to_change_interfaces(host: &Host<'_>, file: &Path) {
    fs::write(file, "iface = 'lo'\nrules = []").expect("write a file");
    let error = host.fails(1, &["apply", "-f", file.to_str().expect("text")]);
    assert!(error.contains(IFACE_CANNOT_CHANGE), "{error}");
}

/// Nothing of what anybody was told is lost.
fn two_writers() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let mut expected: BTreeSet<_> = ["80:8080".to_owned()].into();
    let mut writers = Vec::new();
    for number in 0..12 {
        let rule = format!("{}:8080", 1000 + number);
        writers.push((host.start(&["add", &rule]), rule));
    }
    for (mut writer, rule) in writers {
        let status = writer.wait();
        if status.success() {
            expected.insert(rule);
        } else {
            let error = writer.err();
            assert!(error.contains(ANOTHER_COMMAND), "{error}");
        }
    }
    let rules: BTreeSet<_> = host.rules().into_iter().collect();
    assert_eq!(rules, expected);
    assert!(rules.len() > 6, "{rules:?}");
    host.down();
}

/// Bytes of an answer.
const BODY: usize = 20_000;

/// Requests by many connections, and a stream, while programs and rules are
/// replaced again and again.
fn change_under_load(engine: &'static str) {
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(240))));
    let cell = Cell {
        engine,
        is_offloaded: true,
        family: Family::V4,
    };
    let lab = Lab::new(&cell);
    let _servers = [80, 8080, 9090].map(|port| sized_http_server(&lab.host, port, BODY));
    let mut iperf = lab
        .host
        .start(&["iperf3", "--server", "--port", "5301", "--forceflush"]);
    iperf.wait_for_words("listening");
    let host = Host::of(&lab);
    copy_world_executable(&lab.dir.0);
    host.up(&["--engine", engine, "80:8080", "5201:5301"]);
    let mut stream = lab.client.start(&STREAM);
    let clients = HttpClients::start(&lab, 200, Family::V4.host(80), BODY);
    wait_for("answers", || (clients.answers() > 400).then_some(()));
    for round in 0..12 {
        replace_rules_and_program(&lab, &host, engine, round);
    }
    let answers = clients.end();
    note(&format!("{answers} answers"));
    assert!(stream.try_wait().is_none(), "{}", stream.out());
    stream.signal(Signal::SIGINT);
    stream.wait();
    check_stream(&stream);
    drop(iperf);
    host.down();
    lab.check_checksums();
}

/// A client of iperf3 whose stream lasts longer than the test.
const STREAM: [&str; 10] = [
    "iperf3",
    "--client",
    "10.9.1.1",
    "--port",
    "5201",
    "--time",
    "200",
    "--bitrate",
    "200M",
    "--json",
];

/// Applies other rules, then runs `up` of this program and its copy by turns.
fn replace_rules_and_program(lab: &Lab, host: &Host<'_>, engine: &str, round: usize) {
    let file = lab.dir.0.join("rules.toml");
    let target = [8080, 9090][round % 2];
    let rules = format!(
        "rules = ['5201:5301', '80:{target}', '{}:8080']",
        1000 + round
    );
    fs::write(&file, rules).expect("write a file");
    host.run(&["apply", "-f", file.to_str().expect("text")]);
    let copy = lab.dir.0.join("portredir");
    let program = [PROGRAM, copy.to_str().expect("text")][round % 2];
    let rule = format!("80:{target}");
    let mut args = vec![program, "up", "--replace", "--iface", "h0"];
    args.extend(["--engine", engine]);
    args.extend([rule.as_str(), "5201:5301"]);
    lab.host.run(&args);
}

/// Checks that bytes came in every second of the stream.
fn check_stream(stream: &Process) {
    let report: Value = serde_json::from_str(&stream.out()).expect("iperf3's report");
    let seconds = report["intervals"].as_array().expect("intervals");
    let silent = seconds
        .iter()
        .filter(|second| second["sum"]["bytes"] == 0)
        .count();
    assert_eq!(silent, 0, "seconds without a byte");
}
