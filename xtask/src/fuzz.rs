//! Fuzzing: random input, guided by the code that the input reaches. The tests
//! replay the committed corpus and need nothing of this.

use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::process;
use crate::root::root;

/// A fuzz target. Each one is a program in fuzz/fuzz_targets.
#[derive(Clone, Copy, ValueEnum)]
pub enum Target {
    /// The parser of rules.
    Rule,
    /// The parser of configuration files.
    Config,
    /// The reader of the state that an earlier process pinned.
    State,
    /// The datapath, with packets across a host.
    Packet,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Config => "config",
            Self::State => "state",
            Self::Packet => "packet",
        }
    }
}

/// Runs one target, or all of them, and fails at the first finding.
pub fn fuzz(target: Option<Target>, seconds: u32) -> Result<()> {
    ensure!(
        process::find("cargo-fuzz").is_some(),
        "cargo-fuzz is missing; install it with: cargo install cargo-fuzz"
    );
    ensure!(
        process::find("c++").is_some(),
        "a C++ compiler is missing, which libFuzzer needs; on Debian: apt-get install g++"
    );
    let all = Target::value_variants();
    for &target in target.as_ref().map_or(all, std::slice::from_ref) {
        // New inputs go to the first folder. A person chooses which of them are
        // worth committing.
        let found = root().join("fuzz/target/corpus").join(target.name());
        let corpus = root().join("fuzz/corpus").join(target.name());
        fs::create_dir_all(&found).context("make a folder for findings")?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // A sanitizer finds nothing in safe Rust. Turning it off is an unstable
        // option, which a stable compiler takes only with RUSTC_BOOTSTRAP.
        command
            .args(["fuzz", "run", "--sanitizer=none", "--features=fuzzer"])
            .arg(target.name())
            .args([found, corpus])
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(root());
        process::run(&mut command)?;
    }
    Ok(())
}
