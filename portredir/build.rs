//! Finds the commit and the date of a release build. A build for development has neither, so
//! that a commit compiles nothing anew.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for name in ["PORTREDIR_COMMIT", "SOURCE_DATE_EPOCH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    // The date is that of the commit, so that two builds are equal.
    let commit = set("PORTREDIR_COMMIT").or_else(|| is_release.then(commit)?);
    let epoch = set("SOURCE_DATE_EPOCH").or_else(|| {
        let show = ["show", "--no-patch", "--format=%ct", "HEAD"];
        is_release.then(|| git(&show))?
    });
    if let Some(commit) = commit {
        println!("cargo::rustc-env=PORTREDIR_COMMIT={commit}");
    }
    if let Some(epoch) = epoch {
        println!("cargo::rustc-env=PORTREDIR_EPOCH={epoch}");
    }
}

/// The commit, with a mark when files differ from it.
fn commit() -> Option<String> {
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--path-format=absolute", "--git-path", name])?;
        println!("cargo::rerun-if-changed={path}");
    }
    git(&[
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ])
}

/// The output of git; nothing outside of a repository, or without git.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
