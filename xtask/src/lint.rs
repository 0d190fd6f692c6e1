//! Formatting, clippy and docs.

use std::process::Command;

use anyhow::Result;

use crate::cargo::cargo;
use crate::toolchain::Toolchain;
use crate::{process, root};

/// Fails at the first check that does.
pub fn lint() -> Result<()> {
    // The eBPF crate builds for another target, and features that it shares
    // with the rest must not be unified.
    let rest = ["--workspace", "--exclude=portredir-ebpf"];
    process::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    // Not of this workspace.
    let fuzz = ["--manifest-path", "fuzz/Cargo.toml"];
    process::run(cargo(&["fmt", "--check"]).args(fuzz))?;
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
