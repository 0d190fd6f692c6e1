//! One small workspace for each kind of violation, and the real one.

use super::super::exceptions::EXCEPTIONS;
use super::super::workspace::{self, Source};
use super::*;

/// The violations in a workspace of these files, as `from -> to`.
fn wrong(files: &[(&str, &str)], exceptions: &[Exception]) -> Vec<String> {
    let sources: Vec<_> = files
        .iter()
        .map(|(path, text)| Source {
            path: (*path).to_owned(),
            text: (*text).to_owned(),
        })
        .collect();
    let found = check(&sources, exceptions);
    found
        .iter()
        .map(|found| format!("{} -> {}", found.from, found.to))
        .collect()
}

const ROOTS: [(&str, &str); 3] = [
    ("portredir-common/src/lib.rs", ""),
    ("portredir/src/lib.rs", "pub mod rule;"),
    (
        "portredir/src/main.rs",
        "use portredir::bench; fn f() { println!() }",
    ),
];

fn wrong_with(files: &[(&str, &str)]) -> Vec<String> {
    wrong(&[&ROOTS, files].concat(), &[])
}

#[test]
fn imports_run_downwards() {
    let sources = workspace::sources(&crate::root::root()).expect("readable sources");
    let wrong = check(&sources, EXCEPTIONS);
    let messages: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    assert!(
        wrong.is_empty(),
        "{} walls are broken\n{}",
        wrong.len(),
        messages.join("\n")
    );
}

#[test]
fn nothing_is_wrong_with_imports_from_below() {
    let files = [
        (
            "portredir/src/rule.rs",
            "use portredir_common::net::Port; pub use self::parse::P;",
        ),
        (
            "portredir/src/rule/parse.rs",
            "use super::Rule; use std::fmt;",
        ),
        ("portredir/src/config/file.rs", "use crate::rule::Rule;"),
        ("portredir-common/src/net.rs", ""),
        (
            "portredir/src/bench.rs",
            "use crate::config::file; use aya::Ebpf; use anyhow::Result;",
        ),
    ];
    assert_eq!(wrong_with(&files), Vec::<String>::new());
}

#[test]
fn an_import_from_above_is_wrong() {
    let files = [
        ("portredir/src/rule.rs", ""),
        ("portredir/src/plan.rs", ""),
        ("portredir/src/rule/parse.rs", "use crate::plan::Plan;"),
    ];
    let expected = "portredir/src/rule/parse.rs -> portredir/src/plan.rs";
    assert_eq!(wrong_with(&files), [expected]);
}

#[test]
fn a_path_from_above_is_wrong() {
    let files = [
        ("portredir/src/plan.rs", ""),
        ("portredir/src/rule.rs", "fn f() { crate::plan::run() }"),
    ];
    assert_eq!(
        wrong_with(&files),
        ["portredir/src/rule.rs -> portredir/src/plan.rs"]
    );
}

#[test]
fn a_room_beside_is_wrong() {
    let files = [
        ("portredir/src/host.rs", "use crate::ruleset;"),
        ("portredir/src/ruleset.rs", ""),
    ];
    assert_eq!(
        wrong_with(&files),
        ["portredir/src/host.rs -> portredir/src/ruleset.rs"]
    );
}

#[test]
fn the_wing_is_entered_by_main_alone() {
    let files = [
        ("portredir/src/bench.rs", ""),
        ("portredir/src/controller.rs", "use crate::bench::Stop;"),
    ];
    assert_eq!(
        wrong_with(&files),
        ["portredir/src/controller.rs -> portredir/src/bench.rs"]
    );
}

#[test]
fn the_agent_knows_no_command_line() {
    let files = [
        ("portredir/src/cli.rs", ""),
        ("portredir/src/agent.rs", "use crate::cli::Cli;"),
    ];
    assert_eq!(
        wrong_with(&files),
        ["portredir/src/agent.rs -> portredir/src/cli.rs"]
    );
}

#[test]
fn crates_build_on_common_alone() {
    let files = [
        ("portredir-common/src/net.rs", "use portredir::rule::Rule;"),
        ("portredir/src/rule.rs", ""),
    ];
    assert_eq!(
        wrong_with(&files),
        ["portredir-common/src/net.rs -> portredir/src/rule.rs"]
    );
}

#[test]
fn the_root_is_above_all() {
    let files = [("portredir-common/src/net.rs", "use crate::VERSION;")];
    assert_eq!(
        wrong_with(&files),
        ["portredir-common/src/net.rs -> portredir-common/src/lib.rs"]
    );
}

#[test]
fn privileges_are_for_their_holders() {
    let source = "use aya::Ebpf; use tokio::time; use anyhow::Result;
        fn f() { eprintln!(); std::io::stdout(); unsafe { g() } command.stdout(x) }";
    let files = [("portredir/src/config/file.rs", source)];
    let expected = ["print", "unsafe", "aya", "tokio", "anyhow"];
    let expected = expected.map(|name| format!("portredir/src/config/file.rs -> {name}"));
    assert_eq!(wrong_with(&files), expected);
    let files = [("portredir/src/host/features.rs", "use aya::Ebpf;")];
    assert_eq!(wrong_with(&files), Vec::<String>::new());
    let files = [("portredir/src/host/netlink.rs", "use aya::Ebpf;")];
    assert_eq!(wrong_with(&files), ["portredir/src/host/netlink.rs -> aya"]);
}

#[test]
fn every_file_has_a_floor() {
    let files = [("portredir/src/utils/text.rs", "")];
    assert_eq!(
        wrong_with(&files),
        ["portredir/src/utils/text.rs -> no floor"]
    );
}

#[test]
fn a_circle_is_wrong() {
    let files = [
        ("portredir/src/rule.rs", "use self::parse::{A, B};"),
        ("portredir/src/rule/parse.rs", "use super::Rule;"),
    ];
    let expected = "portredir/src/rule/parse.rs -> portredir/src/rule.rs";
    assert_eq!(wrong_with(&files), [expected]);
}

#[test]
fn exceptions_are_heard_and_grow_stale() {
    let parse = "portredir/src/rule/parse.rs";
    let rule = "portredir/src/rule.rs";
    let exceptions = [(parse, rule, "a test"), (rule, "print", "a test")];
    let circle = [
        (rule, "use self::parse::{A, B}; fn f() { println!() }"),
        (parse, "use super::Rule;"),
    ];
    assert_eq!(wrong(&circle, &exceptions), Vec::<String>::new());
    let cured = [(rule, "use self::parse::{A, B};"), (parse, "")];
    let stale = [format!("{parse} -> {rule}"), format!("{rule} -> print")];
    assert_eq!(wrong(&cured, &exceptions), stale);
}

#[test]
fn messages_say_what_to_do() {
    let sources = [
        ("portredir/src/plan.rs", ""),
        ("portredir/src/rule.rs", "\nuse crate::plan;"),
    ];
    let sources = sources.map(|(path, text)| Source {
        path: path.to_owned(),
        text: text.to_owned(),
    });
    let found = check(&sources, &[]);
    assert_eq!(
        found[0].to_string(),
        "portredir/src/rule.rs:2 imports crate::plan of portredir/src/plan.rs: `rule` is on \
         floor 0 and `plan` on floor 3 above it. Imports run downwards: move the item to a \
         lower floor, or take it as an argument.\n    \
         (\"portredir/src/rule.rs\", \"portredir/src/plan.rs\", \"why\"),"
    );
}
