//! Fuzzing: random input, guided by what of the code it reaches. The corpus that
//! is committed is replayed by the tests, without any of this.

use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::process;
use crate::root::root;

/// What is fed; each is a program in fuzz/fuzz_targets.
#[derive(Clone, Copy, ValueEnum)]
pub enum Target {
    /// Texts of rules.
    Rule,
    /// Files with settings.
    Config,
    /// What a process left behind for the next.
    State,
    /// Packets across a host.
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

/// Runs one target, or all; fails at the first finding.
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
        // What is found goes to the first folder; what is worth committing is
        // for a person to choose.
        let found = root().join("fuzz/target/corpus").join(target.name());
        let corpus = root().join("fuzz/corpus").join(target.name());
        fs::create_dir_all(&found).context("make a folder for findings")?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // Safe Rust has nothing for a sanitizer to find. That it is off, and
        // the coverage, are unstable options, which a release takes only when
        // told so.
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
