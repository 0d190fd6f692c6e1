//! Help, exit codes and messages. Nothing here needs privileges.

mod documents;
mod environment;
mod files;
mod words;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

fn portredir(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portredir"))
        .args(args)
        .env_remove("RUST_LOG")
        .output()
        .expect("run portredir")
}

/// Without privileges, also when the tests have them.
fn unprivileged(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portredir"));
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command
        .args(args)
        .env_remove("RUST_LOG")
        .output()
        .expect("run portredir")
}

/// Exit code and everything on stderr; stdout must be empty.
fn failure(args: &[&str]) -> (Option<i32>, String) {
    let output = portredir(args);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn short_help_fits_a_screen() {
    let output = portredir(&["-h"]);
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert!(help.lines().count() <= 32, "{help}");
    assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    for words in ["--iface", "--engine", "--interval", "--json", "80:8080"] {
        assert!(help.contains(words), "{words} in {help}");
    }
}

#[test]
fn version() {
    let first = concat!("portredir ", env!("CARGO_PKG_VERSION"), "\n");
    let output = portredir(&["-V"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), first);
    let output = portredir(&["--version"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with(first), "{text}");
    let names: Vec<_> = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .collect();
    let [("commit", _), ("built", _), ("eBPF object", object)] = names[..] else {
        panic!("{text}");
    };
    let record = include_str!("../../ebpf/portredir.bpf.json");
    let record: serde_json::Value = serde_json::from_str(record).expect("JSON");
    let sha256 = record["object_sha256"].as_str().expect("text");
    assert_eq!(object, format!("sha256 {sha256}"));
}

#[test]
fn a_bad_rule_is_a_usage_error_that_points_at_the_character() {
    let (code, message) = failure(&["80;8080"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("\n    80;8080\n      ^\n"), "{message}");
    assert!(message.contains("argument 1: bad rule"), "{message}");
    assert!(message.contains("a colon: `80:8080`"), "{message}");
    let (code, message) = failure(&["0:8080"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("port 0 cannot be used"), "{message}");
}

#[test]
fn rules_that_hide_each_other_are_refused() {
    let (code, message) = failure(&["80:8080", "443:8443", "80:8081"]);
    assert_eq!(code, Some(2));
    assert!(
        message.contains(
            "rule `80:8081` (argument 3) never matches: `80:8080` (argument 1) already covers port 80"
        ),
        "{message}"
    );
}

#[test]
fn an_interface_that_does_not_exist_yet_is_said_in_the_plan() {
    let output = portredir(&["plan", "--iface", "lo,no-such-if,lo0", "80:8080"]);
    let plan = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{plan}");
    for line in [
        "`no-such-if` does not exist yet; it will be attached when it appears",
        "`lo0` does not exist yet; it will be attached when it appears (did you mean `lo`?)",
    ] {
        assert!(plan.lines().any(|said| said == line), "{plan}");
    }
}

#[test]
fn bad_options_are_usage_errors() {
    for args in [
        &["--iface", "", "80:8080"][..],
        &["--iface", "all,eth0", "80:8080"],
        &["--iface", "eth[", "80:8080"],
        &["--cgroup", "/proc", "80:8080"],
        &["--engine", "socket", "53:5353/udp"],
        &["plan", "--engine", "socket", "53:5353/udp"],
        &["plan", "--allow-loopback-target", "80:8080"],
        &["plan", "80;8080"],
        &["plan"],
        &["--interval", "0", "80:8080"],
        &["--max-tcp-flows", "1", "80:8080"],
        &["--engine", "fast", "80:8080"],
        &["connections", "dport", "80"],
        &["connections", "port"],
        &["connections", "port", "http"],
        &["connections", "from", "here"],
        &["connections", "rule", "80"],
        &["connections", "--watch=0"],
        &["--metrics", "9474", "80:8080"],
        &["--metrics", "127.0.0.1:0", "80:8080"],
        &["bench", "--quick", "--full"],
        &["bench", "--tests", "speed"],
        &["bench", "--rules", "0"],
        &["bench", "--remote", "192.0.2.1"],
        &["bench", "--remote", "192.0.2.1", "--dial", "80"],
        &["bench", "serve", "--port", "http"],
        &[],
    ] {
        assert_eq!(failure(args).0, Some(2), "{args:?}");
    }
}

#[test]
fn options_come_after_the_command() {
    let (code, message) = failure(&["--engine", "tc", "plan", "80:8080"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("portredir plan [OPTIONS]"), "{message}");
}

#[test]
fn a_plan_needs_no_privileges() {
    let output = unprivileged(&["plan", "--iface", "lo,nothing-is-so*", "80:8080"]);
    let plan = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    for words in [
        "INTERFACE  ENGINE",
        "\nlo ",
        "`nothing-is-so*` matches no interface yet",
        "allow 8080/tcp",
    ] {
        assert!(plan.contains(words), "{words} in {plan}");
    }
}

#[test]
fn a_plan_as_json() {
    let args = ["plan", "--engine", "socket", "--json", "80:8080"];
    let output = unprivileged(&args);
    assert!(output.status.success(), "{output:?}");
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(plan["schema"], 1);
    let lo = &plan["interfaces"][0];
    assert_eq!((&lo["name"], &lo["ifindex"]), (&"lo".into(), &1.into()));
    assert_eq!(lo["hook"], "sk_lookup");
    assert_eq!(plan["firewall"]["open"][0], "80/tcp");
}

#[test]
fn help_of_the_benchmark_fits_a_screen() {
    let output = portredir(&["bench", "-h"]);
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert!(help.lines().count() <= 40, "{help}");
    assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    for words in ["--full", "--against", "--rules", "--html", "serve"] {
        assert!(help.contains(words), "{words} in {help}");
    }
    assert!(!help.contains("prog-run  "), "hidden commands: {help}");
}

#[test]
fn explain_says_how_to_ask() {
    let output = portredir(&["explain", "-h"]);
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert!(help.lines().count() <= 24, "{help}");
    assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    for words in ["FLOW", "--pid", "--json", "tcp local to 127.0.0.1:80"] {
        assert!(help.contains(words), "{words} in {help}");
    }
    for (args, words) in [
        (&["explain"][..], "required"),
        (
            &["explain", "icmp", "1.2.3.4", "to", "1.2.3.5:1"],
            "expected tcp or udp",
        ),
        (
            &["explain", "tcp", "1.2.3.4", "-", "on", "lo"],
            "write `to`",
        ),
        (
            &["explain", "tcp", "1.2.3.4", "->", "1.2.3.5"],
            "has no port",
        ),
        (&["explain", "--pid", "1", "tcp"], "cannot be used with"),
    ] {
        let (code, message) = failure(args);
        assert_eq!(code, Some(2), "{args:?}: {message}");
        assert!(message.contains(words), "{words} in {message}");
    }
}

#[test]
fn a_benchmark_needs_privileges_and_says_which() {
    let output = unprivileged(&["bench"]);
    assert_eq!(output.status.code(), Some(4));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("not permitted"), "{message}");
}

#[test]
fn the_unit_is_right_and_tight() {
    const UNIT: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../packaging/systemd/portredir.service"
    );
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("skipped: needs systemd-analyze");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("portredir.service");
    let unit = std::fs::read_to_string(UNIT).expect("the unit");
    // It would complain of a program that is not installed.
    let unit = unit.replace("/usr/bin/portredir", env!("CARGO_BIN_EXE_portredir"));
    std::fs::write(&path, unit).expect("a file");
    let analyze = |args: &[&str]| {
        let output = Command::new("systemd-analyze")
            .args(args)
            .arg(&path)
            .output()
            .expect("run systemd-analyze");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        (output.status.success(), out, err)
    };
    // The manual pages come with the package.
    assert_eq!(
        analyze(&["verify", "--man=no"]),
        (true, String::new(), String::new()),
        "verify"
    );
    let (is_tight, out, err) = analyze(&["security", "--offline=true", "--threshold=27"]);
    assert!(out.contains("Overall exposure level"), "{out}{err}");
    assert!(is_tight, "{out}");
}

/// The first block of a kind in a document.
fn block<'a>(text: &'a str, kind: &str) -> &'a str {
    let begin = format!("```{kind}\n");
    let (_, text) = text.split_once(&begin).expect(kind);
    text.split_once("```").expect("an end").0
}

#[test]
fn files_in_the_documents_are_right() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
    let read = |path: &str| std::fs::read_to_string(format!("{root}{path}")).expect(path);
    let document = read("docs/CONFIG.md");
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text, rules) in [
        ("document.toml", block(&document, "toml"), 4),
        ("packaged.toml", &read("packaging/rules.toml"), 0),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&path, open).expect("chmod");
        let output = check_file(&path);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, format!("OK: {rules} rules\n"), "{output:?}");
    }
    // Each key, option and variable of the table is one.
    let help = portredir(&["up", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let rows = document
        .lines()
        .filter(|line| line.contains("| `PORTREDIR_"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<_> = row
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        let [_, key, option, variable, ..] = cells[..] else {
            panic!("{row}");
        };
        assert_eq!(option, format!("--{key}"));
        assert_eq!(
            variable,
            format!("PORTREDIR_{}", key.replace('-', "_").to_uppercase())
        );
        assert!(help.contains(&format!(" {option}")), "{option} in {help}");
        let path = dir.path().join("wrong.toml");
        std::fs::write(&path, format!("{key} = []\n")).expect("a file");
        let error = String::from_utf8_lossy(&check_file(&path).stderr).into_owned();
        assert!(!error.contains("unknown key"), "{key}: {error}");
        assert!(error.contains("line 1"), "{key}: {error}");
        let output = Command::new(env!("CARGO_BIN_EXE_portredir"))
            .args(["plan", "80:8080"])
            .env(variable, ",")
            .output()
            .expect("run portredir");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(option), "{variable}: {error}");
        count += 1;
    }
    assert_eq!(count, 13);
}

fn check_file(path: &std::path::Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portredir"));
    command
        .arg("check")
        .arg(path)
        .output()
        .expect("run portredir")
}
