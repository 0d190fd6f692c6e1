//! `portredir bench`: the benchmark measures, and removes everything afterwards.
//! These tests do not ask how fast anything is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Tests;
use crate::lab::Dir;
use crate::lab::extent::allow;
use crate::lab::message::{INTERRUPTED, NOT_MEASURED};
use crate::lab::process::{Process, wait_for, wait_within};
use crate::lab::program::PROGRAM;

/// The prefix of every name that the benchmark makes; its process ID comes next.
const PREFIX: &str = "portredir-bench-";

/// Longer than a run takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(170);

pub fn add(tests: &mut Tests) {
    let tools = &["chrt", "nft", "taskset"];
    tests.add("bench/measures_and_leaves_nothing", tools, measures);
    tests.add("bench/behind", tools, || elsewhere("forward"));
    tests.add("bench/from_this_host", tools, || elsewhere("local"));
    tests.add("bench/udp_from_a_socket", tools, udp_from_a_socket);
    tests.add("bench/interrupted_while_setting_up", tools, || {
        interrupted("setting up portredir");
    });
    tests.add("bench/interrupted_while_measuring", tools, || {
        interrupted("TCP request and response");
    });
    tests.add("bench/killed_and_swept_by_the_next", tools, killed);
    tests.add("bench/a_server_elsewhere", tools, remote);
    tests.add("bench/gates", tools, gates);
}

fn dir() -> Dir {
    let number = std::thread::current().id();
    let name = format!("prt-{}-bench-{number:?}", std::process::id());
    let name: String = name.chars().filter(|c| !"()".contains(*c)).collect();
    let dir = std::env::temp_dir().join(name);
    fs::create_dir(&dir).expect("create a directory");
    Dir(dir)
}

fn start(dir: &Dir, args: &[&str]) -> Process {
    let args = [&[PROGRAM, "bench"], args].concat();
    Process::start(&dir.0, &args)
}

/// Interfaces of this host, and what is attached to them.
fn host() -> String {
    let show = |args: &[&str]| {
        let output = Command::new(args[0]).args(&args[1..]).output();
        String::from_utf8(output.expect("run ip or tc").stdout).expect("text")
    };
    show(&["ip", "-o", "link"]) + &show(&["tc", "qdisc"])
}

/// Namespaces, directories and cgroups that a run has made, and processes that work in
/// its directories.
fn left(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("{PREFIX}{pid}-");
    let is_its = |path: &Path| path.to_string_lossy().contains(&prefix);
    let mut dirs = vec![PathBuf::from("/run/netns"), std::env::temp_dir()];
    dirs.extend(["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from));
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let mut left: Vec<_> = dirs
        .iter()
        .flat_map(|dir| entries(dir).map(|entry| entry.path()))
        .filter(|path| is_its(path))
        .collect();
    for entry in entries(Path::new("/proc")) {
        if fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| is_its(&cwd)) {
            left.push(entry.path());
        }
    }
    left
}

/// Servers on another host, for clients elsewhere and for those of the host that redirects.
fn elsewhere(topology: &str) {
    allow(PATIENCE + Duration::from_secs(30));
    let dir = dir();
    let before = host();
    let json = dir.0.join("report.json").display().to_string();
    let tests = match topology {
        "forward" => "rr,crr,udp,udp-new,bulk",
        _ => "rr,crr,bulk",
    };
    let args = ["--topology", topology, "--tests", tests, "--json", &json];
    let mut bench = start(&dir, &[&args[..], &["--against", "nft-map"]].concat());
    let status = wait_within(PATIENCE, "the benchmark", || bench.try_wait());
    assert!(status.success(), "{status}: {}", bench.err());
    assert_eq!(left(bench.id()), [] as [PathBuf; 0]);
    assert_eq!(host(), before);
    let report = fs::read(&json).expect("the report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    for variant in list(&report["variants"]) {
        assert_eq!(variant["status"], "verified", "{variant}");
    }
    for test in list(&report["tests"]) {
        let rows = list(&test["rows"]);
        assert_eq!(rows.len(), 5, "{test}");
        for row in &rows {
            assert_eq!(row["failure"], Value::Null, "{row}");
        }
    }
    let words = ["--topology", topology, "--against", "nft-stateless"];
    let mut refused = start(&dir, &words);
    assert_eq!(refused.wait().code(), Some(1));
    let said = refused.err();
    assert!(said.contains("nft-stateless is not compared"), "{said}");
}

fn measures() {
    allow(PATIENCE + Duration::from_secs(30));
    let dir = dir();
    let before = host();
    let json = dir.0.join("report.json").display().to_string();
    let html = dir.0.join("report.html").display().to_string();
    let tests = ["--tests", "rr,crr,udp,udp-new,bulk"];
    let variants = [
        "--against",
        "nft-map,nft-stateless",
        "--engine",
        "auto,xdp,socket",
    ];
    let files = ["--json", &json, "--html", &html];
    let mut bench = start(&dir, &[&tests[..], &variants, &files].concat());
    let status = wait_within(PATIENCE, "the benchmark", || bench.try_wait());
    assert!(status.success(), "{status}: {}", bench.err());
    assert_eq!(left(bench.id()), [] as [PathBuf; 0]);
    assert_eq!(host(), before);

    let report = fs::read(&json).expect("the report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["schema"], 1);
    let list = |value: &Value| value.as_array().expect("a list").clone();
    for variant in list(&report["variants"]) {
        assert_eq!(variant["status"], "verified", "{variant}");
    }
    let tests = list(&report["tests"]);
    assert_eq!(tests.len(), 6, "{tests:?}");
    for test in &tests {
        let is_udp = test["operation"] == "packet";
        let rows = list(&test["rows"]);
        // The engine `socket` is for TCP alone.
        assert_eq!(rows.len(), if is_udp { 7 } else { 8 }, "{test}");
        assert!(test["noise"]["deviation"].is_f64(), "{test}");
        for row in &rows {
            assert_eq!(row["failure"], Value::Null, "{row}");
            for (of, figure) in [
                ("cost", "best_ns"),
                ("cost", "median_ns"),
                ("to_direct", "median"),
                ("to_direct", "p10"),
                ("to_direct", "p90"),
            ] {
                let figure = row[of][figure].as_f64().expect("a figure");
                assert!(figure.is_finite() && figure > 0.0, "{row}");
            }
        }
        // One verdict for each of our engines.
        assert_eq!(list(&test["verdicts"]).len(), if is_udp { 2 } else { 3 });
    }
    assert!(
        bench.out().contains("=> portredir auto: "),
        "{}",
        bench.out()
    );
    let page = fs::read_to_string(&html).expect("the page");
    assert_eq!(page.matches("<svg ").count(), 6);
}

/// Instructions of a program as the kernel has it; a change that needs more than
/// a twentieth more of them has to say so here.
const INSTRUCTIONS: [(&str, f64); 4] = [
    ("portredir_xdp", 20_600.0),
    ("portredir_frags", 20_600.0),
    ("portredir_in", 19_600.0),
    ("portredir_out", 13_300.0),
];

/// The gates that hold on a busy machine: many rules cost no more than one,
/// programs have not grown, and large transfers keep their offloads. A gate on
/// times gets a second try.
fn gates() {
    let report = bench_report(&["--tests", "prog-run"]);
    let figures = |report: &Value, name: &str| {
        let tables = report["tables"].as_array().expect("tables");
        let mut lines = tables
            .iter()
            .flat_map(|table| table["lines"].as_array().expect("lines"));
        let line = lines.find(|line| line["name"] == name);
        line.unwrap_or_else(|| panic!("{name}"))["figures"][0].as_f64()
    };
    for (program, limit) in INSTRUCTIONS {
        let count = figures(&report, program).expect("a number");
        assert!(count <= limit * 1.05, "{program}: {count} instructions");
    }
    let many_to_one = |report: &Value| {
        let lines = [
            "xdp: redirected, TCP v4",
            "xdp: redirected, UDP v6",
            "tc ingress: redirected, TCP v4",
            "tc egress: restored, UDP v4",
            "tc egress: no rule, TCP v4",
        ];
        lines.map(|name| {
            let one = figures(report, name).expect("a right packet");
            let many = figures(report, &format!("{name}, 10000 rules")).expect("a right packet");
            (name, many / one)
        })
    };
    let is_flat = |report: &Value| many_to_one(report).iter().all(|(_, ratio)| *ratio <= 1.1);
    if !is_flat(&report) {
        let again = bench_report(&["--tests", "prog-run"]);
        assert!(is_flat(&again), "{:?}", many_to_one(&again));
    }

    // Native XDP on veth would switch its offloads off, and cost four times as much.
    let bulk = || {
        let args = ["--tests", "bulk", "--engine", "auto"];
        let report = bench_report(&[&args[..], &["--against", "none"]].concat());
        let tests = report["tests"].as_array().expect("tests").clone();
        assert_eq!(tests.len(), 2);
        let rows = tests.iter().map(|test| {
            let rows = test["rows"].as_array().expect("rows");
            let ours = rows.iter().find(|row| row["is_ours"] == true);
            ours.expect("ours")["to_direct"]["median"]
                .as_f64()
                .expect("a ratio")
        });
        rows.collect::<Vec<_>>()
    };
    let is_close = |ratios: &[f64]| ratios.iter().all(|ratio| *ratio <= 1.25);
    if !is_close(&bulk()) {
        let again = bulk();
        assert!(is_close(&again), "{again:?}");
    }
}

/// The report of a quick run.
fn bench_report(args: &[&str]) -> Value {
    let dir = dir();
    let json = dir.0.join("report.json").display().to_string();
    let mut bench = start(&dir, &[&["--quick", "--json", &json], args].concat());
    let status = wait_within(PATIENCE, "the benchmark", || bench.try_wait());
    assert!(status.success(), "{status}: {}", bench.err());
    let report = fs::read(&json).expect("the report");
    serde_json::from_slice(&report).expect("JSON")
}

/// Kernels before 5.18 have no other way.
fn udp_from_a_socket() {
    let dir = dir();
    let json = dir.0.join("report.json").display().to_string();
    let args = [
        "--tests",
        "udp,udp-new",
        "--against",
        "none",
        "--raw-socket",
        "--json",
        &json,
    ];
    let mut bench = start(&dir, &args);
    let status = wait_within(PATIENCE, "the benchmark", || bench.try_wait());
    assert!(status.success(), "{status}: {}", bench.err());
    let report = fs::read(&json).expect("the report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    for test in report["tests"].as_array().expect("a list") {
        assert_eq!(test["source"], "raw-socket");
        for row in test["rows"].as_array().expect("a list") {
            assert!(
                row["failure"].is_null() && row["cost"]["best_ns"].is_f64(),
                "{row}"
            );
        }
    }
}

/// Until then it goes on by itself; from then on it ends, and everything is gone.
fn interrupted(words: &str) {
    let dir = dir();
    let before = host();
    let args = ["--tests", "rr,crr,bulk", "--against", "nft-map"];
    let mut bench = start(&dir, &args);
    bench.wait_for_words(words);
    assert_ne!(left(bench.id()).len(), 0);
    bench.signal(Signal::SIGINT);
    let status = bench.wait();
    assert_eq!(status.code(), Some(1), "{}", bench.err());
    assert!(bench.err().contains(INTERRUPTED));
    assert_eq!(left(bench.id()), [] as [PathBuf; 0]);
    assert_eq!(host(), before);
}

fn killed() {
    let dir = dir();
    let args = ["--tests", "rr", "--against", "none"];
    let mut bench = start(&dir, &args);
    bench.wait_for_words("verifying direct 2");
    let pid = bench.id();
    bench.kill();
    wait_for("the kernel to end what it has started", || {
        let is_process = |path: &&PathBuf| path.starts_with("/proc");
        (left(pid).iter().filter(is_process).count() == 0).then_some(())
    });
    assert!(!left(pid).is_empty(), "nobody could remove the namespaces");
    let mut next = start(&dir, &args);
    let status = wait_within(PATIENCE, "the next run", || next.try_wait());
    assert!(status.success(), "{status}: {}", next.err());
    let words = format!("removing network namespace {PREFIX}{pid}-");
    assert!(next.err().contains(&words), "{}", next.err());
    assert_eq!(left(pid), [] as [PathBuf; 0]);
    assert_eq!(left(next.id()), [] as [PathBuf; 0]);
}

/// A machine with the server, and one with the client.
fn remote() {
    let lab = crate::lab::Lab::new(&crate::Cell {
        engine: "tc",
        is_offloaded: true,
        family: crate::lab::Family::V4,
    });
    let mut server = lab.host.start(&[PROGRAM, "bench", "serve"]);
    server.wait_for_words("listening on 8080");
    let redirector = ["--iface", "h0", "--no-local", "80:8080"];
    let _redirector = crate::lab::program::Redirector::start(&lab.host, &redirector);
    let json = lab.dir.0.join("remote.json").display().to_string();
    let host = crate::lab::Family::V4.host(0).ip().to_string();
    let dial = "portredir=80,nothing=81";
    let args = [PROGRAM, "bench", "--remote", &host, "--dial", dial];
    let tests = ["--tests", "rr,crr,bulk", "--json", &json];
    let mut bench = lab.client.start(&[&args[..], &tests].concat());
    let status = wait_within(PATIENCE, "the benchmark", || bench.try_wait());
    // Nothing listens on port 81, and the benchmark says so.
    assert_eq!(status.code(), Some(1), "{}", bench.err());
    assert!(bench.out().contains(NOT_MEASURED), "{}", bench.out());
    let report = fs::read(&json).expect("the report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    for test in report["tests"].as_array().expect("a list") {
        let rows = test["rows"].as_array().expect("a list");
        let names: Vec<_> = rows.iter().map(|row| row["variant"].clone()).collect();
        assert_eq!(names, ["direct", "direct 2", "direct 3", "portredir"]);
        assert!(rows.iter().all(|row| row["failure"].is_null()), "{test}");
    }
}
