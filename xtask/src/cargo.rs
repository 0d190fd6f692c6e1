//! Running cargo as the user who started this program, never as root.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::process;
use crate::root::root;

/// A program that cargo built.
pub struct Program {
    pub path: PathBuf,
    /// The folder of the package, where cargo would run the tests.
    pub package: PathBuf,
    /// The name of the cargo target.
    pub name: String,
    /// `bin`, `lib` or `test`.
    pub kind: String,
    /// Whether the program is the test program of the target.
    pub is_test: bool,
}

/// One line of `--message-format=json`. Most lines have no executable.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// A command of the cargo that runs this program, in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).current_dir(root());
    cargo
}

/// Builds, and returns the programs. Cargo names their paths, which depend on the
/// profile, the environment and the user's configuration.
pub fn build(args: &[&str]) -> Result<Vec<Program>> {
    programs(cargo(args))
}

/// Runs a cargo command that builds, and returns the programs it built.
pub fn programs(mut cargo: Command) -> Result<Vec<Program>> {
    cargo.arg("--message-format=json-render-diagnostics");
    eprintln!("$ {}", process::line(&cargo));
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(output.status.success(), "{}", process::line(&cargo));
    String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| match serde_json::from_str(line) {
            Ok(message) => program(message).map(Ok),
            Err(error) => Some(Err(error).context("read cargo's messages")),
        })
        .collect()
}

fn program(message: Message) -> Option<Program> {
    let target = message.target?;
    Some(Program {
        path: message.executable?,
        package: message.manifest_path?.parent()?.to_owned(),
        name: target.name,
        kind: target.kind.into_iter().next()?,
        is_test: message.profile?.test,
    })
}

/// Builds portredir and replaces this process by it, so that Ctrl-C reaches
/// portredir alone.
pub fn run(args: &[OsString]) -> Result<()> {
    let programs = build(&["build", "--release", "-p", "portredir", "--bin=portredir"])?;
    let program = programs.first().context("find portredir after its build")?;
    let mut command = process::as_root(&program.path);
    Err(command.args(args).exec()).with_context(|| process::line(&command))
}
