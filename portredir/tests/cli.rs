//! Help, exit codes and messages. Nothing here needs privileges.

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
    let output = portredir(&["--version"]);
    let expected = concat!("portredir ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
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
            "rule `80:8081` (argument 3) never matches: `80:8080` (argument 1) takes port 80"
        ),
        "{message}"
    );
}

#[test]
fn an_unknown_interface_is_refused_with_those_that_exist() {
    let (code, message) = failure(&["--iface", "lo,no-such-if", "80:8080"]);
    assert_eq!(code, Some(2));
    assert!(
        message.contains("no interface `no-such-if`; there are: lo"),
        "{message}"
    );
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
        "let in 8080/tcp",
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
