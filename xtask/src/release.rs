//! The conditions of a release: each is checked, and all that do not hold are
//! named.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::root::root;
use crate::{cargo, process};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The options of `cargo xtask release`.
#[derive(Args)]
pub struct Options {
    /// Change nothing: check whether this commit can be released.
    #[arg(long, required = true)]
    check: bool,
    /// The tag of the release, which names the version: `v1.2.3`.
    #[arg(long)]
    tag: Option<String>,
}

/// Checks all points, and prints the outcome of each.
pub fn release(options: &Options) -> Result<()> {
    let tag = || tag(options.tag.as_deref());
    let points: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("the tag names the version", &tag),
        ("CHANGELOG.md has the version", &changelog),
        ("the tree is clean", &tree),
        ("the packages are of this commit", &packages),
        ("the commands in the documents work", &documents),
    ];
    let mut failed = 0;
    for (name, check) in points {
        match check() {
            Ok(()) => println!("ok      {name}"),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name}: {error:#}");
            }
        }
    }
    ensure!(failed == 0, "{failed} points do not hold");
    Ok(())
}

fn tag(tag: Option<&str>) -> Result<()> {
    let wanted = format!("v{VERSION}");
    match tag {
        Some(tag) => ensure!(tag == wanted, "{tag} is not {wanted}"),
        None => println!("        no tag was given; it will be {wanted}"),
    }
    Ok(())
}

fn changelog() -> Result<()> {
    let text = fs::read_to_string(root().join("CHANGELOG.md")).context("read CHANGELOG.md")?;
    check_changelog(&text, VERSION)
}

/// The changes of a version stand below its own heading, and none are unreleased.
fn check_changelog(text: &str, version: &str) -> Result<()> {
    let sections: Vec<_> = text
        .split("\n## ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .collect();
    let find = |name: &str| {
        let is_it = |title: &str| title.split([' ', ',']).next() == Some(name);
        sections.iter().find(|(title, _)| is_it(title))
    };
    let (_, changes) = find(version).with_context(|| format!("find a heading `## {version}`"))?;
    ensure!(!changes.trim().is_empty(), "{version} has no changes");
    let unreleased = find("Unreleased").is_none_or(|(_, changes)| changes.trim().is_empty());
    ensure!(unreleased, "changes stand below `## Unreleased`");
    Ok(())
}

fn tree() -> Result<()> {
    let mut git = Command::new("git");
    git.args(["status", "--porcelain"]).current_dir(root());
    let changed = process::output(&mut git)?;
    ensure!(
        changed.is_empty(),
        "{} files are changed",
        changed.lines().count()
    );
    Ok(())
}

/// Each package exists, and the program in it names this commit.
fn packages() -> Result<()> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--short=10", "HEAD"])
        .current_dir(root());
    let commit = process::output(&mut git)?;
    let folder = root().join("target/package");
    let deb = folder.join(format!("deb/portredir_{VERSION}-1_amd64.deb"));
    let rpm = folder.join(format!("rpm/portredir-{VERSION}-1.x86_64.rpm"));
    let tar = folder.join(format!("tar/portredir-{VERSION}-x86_64-linux.tar.gz"));
    for (kind, package, program) in [
        ("deb", deb, "deb/files/usr/bin/portredir"),
        ("rpm", rpm, "rpm/files/usr/bin/portredir"),
        (
            "tar",
            tar,
            &format!("tar/portredir-{VERSION}-x86_64-linux/bin/portredir"),
        ),
    ] {
        let hint = || format!("cargo xtask package {kind}");
        ensure!(
            package.exists(),
            "there is no {}: {}",
            package.display(),
            hint()
        );
        check_program(&folder.join(program), &commit).with_context(hint)?;
    }
    ensure!(
        folder.join("sbom.json").exists(),
        "cargo xtask package sbom"
    );
    Ok(())
}

fn check_program(program: &Path, commit: &str) -> Result<()> {
    let said = process::output(Command::new(program).arg("--version"))?;
    if said.contains(&commit[..7]) && !said.contains("dirty") {
        return Ok(());
    }
    bail!("{} is `{said}`, not of commit {commit}", program.display())
}

/// Runs the tests that read the documents.
fn documents() -> Result<()> {
    let args = ["test", "--quiet", "-p", "portredir", "--test", "cli"];
    process::run(&mut cargo::cargo(&args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_a_release_stand_below_its_version() {
        let text = "# Changelog\n\n## 1.2.0, 2026-11-28\n\n* one\n\n## 1.1.0\n\n* two\n";
        assert!(check_changelog(text, "1.2.0").is_ok());
        assert!(check_changelog(text, "1.3.0").is_err());
        assert!(check_changelog("# C\n\n## Unreleased\n\n* one\n", "1.2.0").is_err());
        let both = text.replace("## 1.2.0", "## Unreleased\n\n* new\n\n## 1.2.0");
        assert!(check_changelog(&both, "1.2.0").is_err());
        assert!(check_changelog("# C\n\n## 1.2.0\n\n## 1.1.0\n\n* x\n", "1.2.0").is_err());
    }
}
