//! Running other programs, and finding them.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Shows a command, runs it, and makes its failure an error.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", line(command));
    let status = command.status().with_context(|| line(command))?;
    ensure!(status.success(), "{}: {status}", line(command));
    Ok(())
}

/// Runs a command and returns its output without the last newline.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| line(command))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        line(command),
        output.status
    );
    let text = String::from_utf8(output.stdout).with_context(|| line(command))?;
    Ok(text.trim_end().to_owned())
}

/// The text of a command as a user would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = program.file_name().into_iter().chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// A command that runs `program` as root.
pub fn as_root(program: impl AsRef<OsStr>) -> Command {
    // /proc/self belongs to the effective user.
    if fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg("--").arg(program);
    sudo
}

/// The path of a program. The sbin folders are searched too: a user's PATH often
/// lacks them, and the tests that need them run as root.
pub fn find(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([
        cargo_home().join("bin"),
        "/usr/local/sbin".into(),
        "/usr/sbin".into(),
        "/sbin".into(),
    ]);
    // An absolute path replaces the folder that it is joined to.
    folders
        .map(|folder| folder.join(program.as_ref()))
        .find(|path| path.exists())
}

/// The folder where cargo keeps downloaded sources and installed programs.
pub fn cargo_home() -> PathBuf {
    let default = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}
