//! Checks of the sources that need no test to run: formatting, walls, sizes,
//! clippy and docs.

mod allowed;
mod circles;
mod exceptions;
mod floors;
mod functions;
mod habits;
mod imports;
mod limits;
mod rust;
mod sizes;
mod walls;
mod workspace;

use std::process::Command;

use anyhow::{Result, bail};

use self::allowed::ALLOWED;
use self::exceptions::EXCEPTIONS;
use crate::cargo::cargo;
use crate::process;
use crate::root::root;
use crate::toolchain::Toolchain;

/// How much to print.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The table, the counts and what fails.
    Summary,
    /// Every exception and every place that is counted, too.
    Everything,
}

/// Fails at the first check that does.
pub fn lint(detail: Detail) -> Result<()> {
    process::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    // The fuzz crate is a workspace of its own.
    let fuzz = ["--manifest-path", "fuzz/Cargo.toml"];
    process::run(cargo(&["fmt", "--check"]).args(fuzz))?;
    lint_sources(detail)?;
    // The eBPF crate builds for another target, and features that it shares
    // with the rest must not be unified.
    let rest = ["--workspace", "--exclude=portredir-ebpf"];
    process::run(
        cargo(&["clippy"])
            .args(rest)
            .args(["--all-targets", "--", "-D", "warnings"]),
    )?;
    process::run(
        cargo(&["doc", "--no-deps"])
            .args(rest)
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    match Toolchain::find() {
        Ok(toolchain) => lint_ebpf(&toolchain),
        Err(error) => {
            eprintln!("skipped clippy for portredir-ebpf: {error:#}");
            Ok(())
        }
    }
}

/// Prints the sizes and the debts, and fails when a wall is broken or a limit is
/// passed.
fn lint_sources(detail: Detail) -> Result<()> {
    let sources = workspace::sources(&root())?;
    let functions = sizes::all_functions(&sources);
    println!("{}", sizes::table(&sizes::files(&sources), &functions));
    println!("{}", limits::counts(&sources));
    println!(
        "exceptions: {} from the walls, {} long files, {} long functions",
        EXCEPTIONS.len(),
        ALLOWED.files.len(),
        ALLOWED.functions.len()
    );
    if detail == Detail::Everything {
        print!("\n{}", limits::report(&sources));
        for (from, to, why) in EXCEPTIONS {
            println!("{from} -> {to}: {why}");
        }
        for (path, why) in ALLOWED.files {
            println!("long file {path}: {why}");
        }
        for (group, name, why) in ALLOWED.functions {
            println!("long function {name} of {group}: {why}");
        }
    }
    let broken = walls::check(&sources, EXCEPTIONS);
    let broken = broken.iter().map(ToString::to_string);
    let wrong: Vec<_> = broken.chain(limits::check(&sources, &ALLOWED)).collect();
    if !wrong.is_empty() {
        bail!(
            "{} findings in the sources\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
    Ok(())
}

fn lint_ebpf(toolchain: &Toolchain) -> Result<()> {
    // Called by its path: `cargo clippy` would take the one of another
    // toolchain, which comes first on PATH.
    let clippy = toolchain.program("cargo-clippy");
    if !clippy.exists() {
        eprintln!("skipped clippy for portredir-ebpf: no {}", clippy.display());
        return Ok(());
    }
    let mut command = Command::new(clippy);
    command
        .arg("clippy")
        .args(toolchain.build_args())
        .args(["--", "-D", "warnings"]);
    toolchain.apply(&mut command);
    process::run(command.current_dir(root()))
}
