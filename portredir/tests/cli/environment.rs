//! Variables of the environment: the command line overrides them, and their errors name
//! them.

use std::fs;
use std::process::{Command, Output};

/// Runs `portredir` with one variable.
fn with(variable: &str, value: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portredir"))
        .args(args)
        .env_remove("RUST_LOG")
        .env(variable, value)
        .output()
        .expect("run portredir")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_bad_value_is_blamed_on_the_variable() {
    for (variable, value) in [
        ("PORTREDIR_ENGINE", "foo"),
        ("PORTREDIR_ENGINE", ""),
        ("PORTREDIR_IFACE", "eth0,"),
        ("PORTREDIR_NO_LOCAL", "maybe"),
        ("PORTREDIR_HIDE_TARGET", "2"),
        ("PORTREDIR_IF_LISTENING", "on"),
        ("PORTREDIR_ALLOW_LOOPBACK_TARGET", "on"),
        ("PORTREDIR_CGROUP", "/proc"),
        ("PORTREDIR_DRAIN_TIMEOUT", "soon"),
        ("PORTREDIR_MAX_TCP_FLOWS", "1"),
        ("PORTREDIR_MAX_UDP_FLOWS", "many"),
    ] {
        for args in [&["plan", "80:8080"][..], &["80:8080"], &["up", "80:8080"]] {
            let output = with(variable, value, args);
            let said = said(&output);
            assert_eq!(output.status.code(), Some(2), "{variable}={value}: {said}");
            let words = format!("environment variable {variable}");
            assert!(said.contains(&words), "{variable}={value}: {said}");
        }
    }
    // What is typed is not blamed on the environment, and overrides it.
    let output = with(
        "PORTREDIR_ENGINE",
        "tc",
        &["plan", "--engine=foo", "80:8080"],
    );
    assert!(!said(&output).contains("environment"), "{output:?}");
    let output = with(
        "PORTREDIR_ENGINE",
        "foo",
        &["plan", "--engine=tc", "80:8080"],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_variable_concerns_only_commands_that_read_it() {
    let output = with("PORTREDIR_ENGINE", "foo", &["check", "/dev/null"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn typed_rules_and_paths_override_the_named_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("rules.toml");
    fs::write(&path, "rules = ['81:8081']\n").expect("a file");
    let text = path.to_str().expect("text");
    let firewall = |args: &[&str]| {
        let output = with("PORTREDIR_CONFIG", text, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(firewall(&["plan"]).contains("allow 8081/tcp"));
    assert!(firewall(&["plan", "80:8080"]).contains("allow 8080/tcp"));
    let other = dir.path().join("other.toml");
    fs::write(&other, "rules = ['82:8082']\n").expect("a file");
    let other = other.to_str().expect("text");
    assert!(firewall(&["plan", "--config", other]).contains("allow 8082/tcp"));
    // Both typed is still an error.
    let output = with(
        "PORTREDIR_CONFIG",
        text,
        &["plan", "--config", other, "80:8080"],
    );
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_named_file_that_is_missing_is_blamed_on_the_variable() {
    for args in [&["plan"][..], &["check"]] {
        let output = with("PORTREDIR_CONFIG", "/nonexistent/x.toml", args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = said(&output);
        assert!(
            said.contains("/nonexistent/x.toml") && said.contains("PORTREDIR_CONFIG"),
            "{said}"
        );
    }
}
