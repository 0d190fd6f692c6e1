//! Metrics: by the command, over HTTP, while others make trouble, and at a port that is
//! taken.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::Tests;
use crate::lab::Lab;
use crate::lab::process::wait_for;
use crate::lab::program::{Redirector, attached};
use crate::lifecycle::host::{CELL, Host, check_reaches};
use crate::peer::echo::EchoServer;

const ADDR: &str = "127.0.0.1:9474";

pub fn add(tests: &mut Tests) {
    tests.add("metrics/command", &[], command);
    tests.add("metrics/file", &[], file);
    tests.add("metrics/watcher", &["curl"], watcher);
    tests.add("metrics/foreground", &["curl"], foreground);
    tests.add("metrics/taken_port", &[], taken_port);
    tests.add("metrics/slow_clients", &[], slow_clients);
}

fn scrape(lab: &Lab, addr: &str) -> String {
    lab.host.run(&[
        "curl",
        "--silent",
        "--fail",
        &format!("http://{addr}/metrics"),
    ])
}

/// Waits for the server of the watcher, for which `up` does not wait.
fn wait_until_served(lab: &Lab, addr: &str) {
    wait_for("the server of metrics", || {
        lab.host.enter(|| TcpStream::connect(addr)).ok()
    });
}

/// The value of a series.
fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{series} ")));
    let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.parse().expect("a number")
}

fn packets_in(rule: &str) -> String {
    format!("portredir_rule_packets_total{{rule=\"{rule}\",direction=\"in\"}}")
}

/// The names of the metrics, without those that depend on time and traffic.
fn names(text: &str) -> Vec<&str> {
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    names.collect()
}

fn command() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080/both", "81:8080/both"]);
    let server = EchoServer::start(&lab.host, 8080);
    check_reaches(&lab, 80, &server);
    let text = host.run(&["metrics"]);
    assert_eq!(value(&text, "portredir_running"), 1.0);
    assert_eq!(value(&text, "portredir_rules"), 2.0);
    assert_eq!(value(&text, "portredir_watched"), 1.0);
    assert_eq!(value(&text, &packets_in("81:8080/both")), 0.0);
    let report = host.status();
    let expected = report["rules"][0]["packets"].as_f64().expect("a number");
    assert_eq!(value(&text, &packets_in("80:8080/both")), expected);
    assert!(expected > 0.0);
    assert_eq!(
        value(&text, "portredir_rule_flows_total{rule=\"80:8080/both\"}"),
        2.0
    );
    for (outcome, least) in [("accepted", 1.0), ("refused", 0.0)] {
        let series = "portredir_rule_connections_total{rule=\"80:8080/both\"";
        let series = format!("{series},outcome=\"{outcome}\"}}");
        assert_eq!(value(&text, &series), least, "{outcome}");
    }
    let out = packets_in("80:8080/both").replace("\"in\"", "\"out\"");
    let replies = report["rules"][0]["packets_out"].as_f64();
    assert_eq!(value(&text, &out), replies.expect("a number"));
    let of_h0 = "portredir_interface_packets_total{interface=\"h0\",direction=\"in\"}";
    assert_eq!(value(&text, of_h0), expected);
    assert!(value(&text, "portredir_map_entries{map=\"udp_flows\"}") >= 1.0);
    assert_eq!(
        value(&text, "portredir_map_capacity{map=\"tcp_flows\"}"),
        262_144.0
    );
    assert!(value(&text, "portredir_reconciles_total") >= 1.0);

    host.kill_watcher();
    let text = host.run(&["metrics"]);
    assert_eq!(value(&text, "portredir_watched"), 0.0);
    assert_eq!(value(&text, &packets_in("80:8080/both")), expected);
    assert!(
        !text.contains("portredir_reconciles_total"),
        "nobody does it"
    );
    host.down();
}

/// The file for the textfile collector.
fn file() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let path = lab.dir.0.join("portredir.prom");
    let file = path.to_str().expect("text");
    host.fails(3, &["metrics", "--output", file]);
    let read = || fs::read_to_string(file).expect("the file");
    assert_eq!(value(&read(), "portredir_running"), 0.0);
    host.up(&["80:8080/both"]);
    let text = host.run(&["metrics"]);
    host.run(&["metrics", "--output", file]);
    assert_eq!(names(&read()), names(&text));
    let mode = fs::metadata(file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    let names_there = fs::read_dir(&lab.dir.0).expect("the directory");
    let left = names_there.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().starts_with(".portredir-")
    });
    assert_eq!(left.count(), 0, "temporary files are left");
    host.fails(1, &["metrics", "--output", "/proc/portredir.prom"]);
    host.down();
}

/// The watcher serves metrics at the address of the settings, and follows a change.
fn watcher() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["--metrics", ADDR, "80:8080/both"]);
    let server = EchoServer::start(&lab.host, 8080);
    wait_until_served(&lab, ADDR);
    let before = scrape(&lab, ADDR);
    check_reaches(&lab, 80, &server);
    let text = scrape(&lab, ADDR);
    let series = packets_in("80:8080/both");
    assert_eq!(value(&before, &series), 0.0);
    assert!(value(&text, &series) > 0.0, "read anew");
    assert_eq!(names(&text), names(&host.run(&["metrics"])));
    assert_eq!(host.status()["settings"]["metrics"], ADDR);

    let other = "127.0.0.1:9475";
    host.up(&["--metrics", other, "80:8080/both"]);
    wait_until_served(&lab, other);
    scrape(&lab, other);
    let refused = lab.host.enter(|| TcpStream::connect(ADDR));
    refused.expect_err("the old address is closed");
    // The same address again is no conflict with the watcher itself.
    host.up(&["--metrics", other, "80:8080/both", "81:8080/both"]);
    wait_for("the new rule", || {
        (value(&scrape(&lab, other), "portredir_rules") == 2.0).then_some(())
    });
    host.up(&["80:8080/both"]);
    wait_for("no server", || {
        let answer = lab.host.enter(|| TcpStream::connect(other));
        answer.is_err().then_some(())
    });
    host.down();
}

fn foreground() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let args = ["--iface", "h0", "--metrics", ADDR, "80:8080/both"];
    let mut redirector = Redirector::start(&lab.host, &args);
    check_reaches(&lab, 80, &server);
    let text = scrape(&lab, ADDR);
    assert!(value(&text, &packets_in("80:8080/both")) > 0.0, "{text}");
    assert!(
        value(
            &text,
            "portredir_attached{interface=\"h0\",engine=\"tc\",mode=\"tcx\"}"
        ) > 0.0
    );
    redirector.process.signal(Signal::SIGINT);
    assert!(redirector.process.wait().success());
}

/// A port that is taken is an error before anything is attached, and an error in the
/// journal where it is taken later.
fn taken_port() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let taken = lab.host.listen(ADDR);
    let args = ["--iface", "h0", "--metrics", ADDR, "80:8080"];
    for command in [&[][..], &["up"], &["up", "--dry-run"]] {
        let error = host.fails(1, &[command, &args].concat());
        assert!(
            error.contains("--metrics: cannot listen on 127.0.0.1:9474"),
            "{error}"
        );
        assert!(error.contains("ss -ltnp 'sport = 9474'"), "{error}");
        assert_eq!(attached(&lab.host), [""; 0]);
    }
    let error = host.fails(1, &["up", "--metrics", "192.0.2.7:9474", "80:8080"]);
    assert!(error.contains("choose an address of this host"), "{error}");
    let error = host.fails(2, &["up", "--metrics", "9474", "80:8080"]);
    assert!(
        error.contains("expected ADDR:PORT, for example 127.0.0.1:9474"),
        "{error}"
    );
    host.fails(3, &["status"]);
    drop(taken);
    host.up(&["--metrics", ADDR, "80:8080"]);
    host.kill_watcher();
    let taken = lab.host.listen(ADDR);
    let mut watcher = host.start(&["watch"]);
    watcher.wait_for_words("--metrics: cannot listen on 127.0.0.1:9474");
    drop(taken);
    wait_until_served(&lab, ADDR);
    host.down();
}

/// Clients that send nothing, and clients that read nothing, hold up neither the redirect
/// nor a command.
fn slow_clients() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["--metrics", ADDR, "80:8080/both"]);
    let server = EchoServer::start(&lab.host, 8080);
    wait_until_served(&lab, ADDR);
    let connect = || {
        lab.host
            .enter(|| TcpStream::connect(ADDR))
            .expect("connect")
    };
    let silent: Vec<_> = (0..200).map(|_| connect()).collect();
    let mut deaf: Vec<_> = (0..50).map(|_| connect()).collect();
    for stream in &mut deaf {
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    }
    let began = Instant::now();
    host.run(&["add", "81:8080/both"]);
    for port in [80, 81] {
        check_reaches(&lab, port, &server);
    }
    host.status();
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    drop(silent);
    let mut answer = String::new();
    deaf[0].read_to_string(&mut answer).expect("read");
    host.down();
}
