//! Each command with `--json` prints what its schema says, also where much is wrong.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Tests;
use crate::lab::process::wait_for;
use crate::lab::program::Redirector;
use crate::lab::{Family, Lab, schema};
use crate::lifecycle::host::{CELL, Host, check_reaches};
use crate::peer::conn::{Conn, PROTOS};
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("schema/of_nothing", &["python3"], of_nothing);
    tests.add("schema/active", &["python3"], active);
    tests.add("schema/degraded", &["python3", "bpftool"], degraded);
    tests.add("schema/foreground", &["python3"], foreground);
    tests.add("schema/finds_errors", &["python3"], finds_errors);
}

/// Runs a command with any end, and checks its output.
fn check(host: &Host<'_>, args: &[&str]) -> Value {
    let mut all = args.to_vec();
    all.insert(1, "--json");
    let mut process = host.start(&all);
    let status = process.wait();
    let out = process.out();
    schema::check(args[0], &out);
    let json: Value = serde_json::from_str(&out).expect("one object");
    let is_nothing = json["running"] == false && args[0] != "doctor";
    assert_eq!(status.code() == Some(3), is_nothing, "{args:?}: {out}");
    json
}

fn of_nothing() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    for args in [
        &["status"][..],
        &["status", "--check"],
        &["rules"],
        &["targets"],
        &["connections"],
    ] {
        let json = check(&host, args);
        assert_eq!(json, serde_json::json!({ "schema": 1, "running": false }));
    }
    check(&host, &["features"]);
    check(&host, &["doctor"]);
    check(&host, &["doctor", "--iface", "h0", "80:8080"]);
    check(&host, &["plan", "80:8080", "53:5353/udp"]);
    check(
        &host,
        &["plan", "80:192.0.2.1:8080,10.9.1.2", "81:8080,8081"],
    );
    check(&host, &["plan", "--enable-forwarding", "80:10.9.1.2"]);
    check(&host, &["plan", "--engine", "xdp", "80:8080"]);
    check(&host, &["plan", "--engine", "socket", "80:8080"]);
}

fn active() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let server = EchoServer::start(&lab.host, 8080);
    host.up(&[
        "--metrics",
        "127.0.0.1:9474",
        "80:8080/both",
        "81:9999 on h0",
        "83:8080,8081 check tcp every 200ms",
    ]);
    check_reaches(&lab, 80, &server);
    host.run(&["add", "--confirm", "1min", "82:8080"]);
    check(&host, &["status"]);
    host.run(&["confirm"]);
    let status = check(&host, &["status"]);
    assert!(status["rules"][0]["packets"].as_u64() > Some(0));
    let mut conns = PROTOS.map(|proto| Conn::to(&lab.client, proto, 0, Family::V4.host(80)));
    conns.iter_mut().for_each(|conn| conn.echo(b"listed"));
    wait_for("8081 to be down", || {
        let targets = check(&host, &["targets"]);
        (targets["targets"][1]["state"] == "down").then_some(())
    });
    host.run(&["drain", "8080"]);
    for args in [
        &["targets"][..],
        &["rules"],
        &["doctor"],
        &["plan", "80:8080"],
        &["status", "--check"],
        &["connections"],
        &[
            "explain",
            "tcp",
            "10.9.1.2",
            "to",
            "10.9.1.1:80",
            "on",
            "h0",
        ],
        &["explain", "udp", "local", "to", "127.0.0.1:80"],
        &[
            "explain",
            "tcp",
            "10.9.1.2",
            "to",
            "10.9.1.1:99",
            "on",
            "h0",
        ],
        &["explain", "--pid", &std::process::id().to_string()],
    ] {
        check(&host, args);
    }
    host.down();
}

fn degraded() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080", "81:8080 on no0"]);
    host.kill_watcher();
    let link = format!("{}/if11-ingress", host.pins().display());
    lab.host
        .run(&["bpftool", "link", "detach", "pinned", &link]);
    let status = check(&host, &["status", "--check"]);
    assert_eq!(status["healthy"], false);
    assert_eq!(status["interfaces"][0]["state"], "missing");
    assert!(status["faults"].as_array().expect("a list").len() >= 3);
    check(&host, &["doctor"]);
    host.down();
}

fn foreground() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let mut redirector = Redirector::start(&lab.host, &["--iface", "h0", "80:8080/both"]);
    check_reaches(&lab, 80, &server);
    redirector.fresh_report();
    for args in [&["status"][..], &["rules"], &["targets"], &["doctor"]] {
        check(&host, args);
    }
    let mut trace = host.start(&["trace", "--json", "--count", "8"]);
    trace.wait_for_words("tracing");
    for proto in PROTOS {
        Conn::to(&lab.client, proto, 0, Family::V4.host(80)).echo(b"traced");
    }
    assert!(trace.wait().success());
    schema::check("trace", &trace.out());
    redirector.process.signal(Signal::SIGINT);
    assert!(redirector.process.wait().success());
    schema::check("run", &redirector.process.out());
}

/// The comparison can fail: by a key too many, by one that is missing, and by a value.
fn finds_errors() {
    let good = r#"{"schema":1,"running":true,"rules":["80:8080"],"rule_objects":[]}"#;
    assert_eq!(schema::errors("rules", good), "");
    for bad in [
        r#"{"schema":1,"running":true,"rules":["80:8080"],"rule_objects":[],"more":1}"#,
        r#"{"schema":1,"running":true}"#,
        r#"{"schema":2,"running":false}"#,
        r#"{"schema":1,"running":true,"rules":[80],"rule_objects":[]}"#,
        r#"{"schema":1,"running":true,"rules":["80:8080"],"rule_objects":[{"rule":"80:8080"}]}"#,
    ] {
        assert_ne!(schema::errors("rules", bad), "", "{bad}");
    }
    let time =
        r#"{"schema":1,"time":"yesterday","rules":[],"interfaces":[],"drops":{},"passes":{}}"#;
    assert_ne!(schema::errors("run", time), "");
}
