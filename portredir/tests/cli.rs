//! Help, exit codes and messages. Nothing here needs privileges.

use std::process::{Command, Output};

fn portredir(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portredir"))
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
    assert!(help.lines().count() <= 24, "{help}");
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
    assert!(message.contains("for example 80:8080"), "{message}");
    let (code, message) = failure(&["0:8080"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("port 0 cannot be used"), "{message}");
}

#[test]
fn rules_that_hide_each_other_are_refused() {
    let (code, message) = failure(&["80:8080", "443:8443", "80:8081"]);
    assert_eq!(code, Some(2));
    assert!(
        message.contains("rules `80:8080` and `80:8081` both redirect port 80"),
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
        &["--interval", "0", "80:8080"],
        &["--max-tcp-flows", "1", "80:8080"],
        &["--engine", "fast", "80:8080"],
        &[],
    ] {
        assert_eq!(failure(args).0, Some(2), "{args:?}");
    }
}
