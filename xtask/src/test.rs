//! The tests by tier. The tests are built and, where that does, run by the one
//! who started us; only those that change the network run as root.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::cargo::{self, Program};
use crate::report::Counts;
use crate::{process, setup};

/// A group of tests that need the same things.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Tier {
    /// The crates' own tests and the datapath without a kernel; no root.
    Unit,
    /// Help, exit codes and output of the program; no root.
    Cli,
    /// One packet through the programs in the kernel; root.
    ProgRun,
    /// Hosts that talk through portredir, in network namespaces; root.
    Netns,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Cli => "cli",
            Self::ProgRun => "prog-run",
            Self::Netns => "netns",
        }
    }

    /// Cargo's name of the integration test.
    fn target(self) -> &'static str {
        match self {
            Self::Unit => "host",
            Self::Cli => "cli",
            Self::ProgRun => "prog_run",
            Self::Netns => "netns",
        }
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::ProgRun | Self::Netns)
    }

    fn has(self, program: &Program) -> bool {
        if program.kind == "test" {
            program.name == self.target()
        } else {
            program.is_test && self == Self::Unit
        }
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            // They wait for each other's timers more than for a CPU, but each
            // one starts several processes.
            Self::Netns => &["--test-threads=2"],
            _ => &[],
        }
    }
}

/// How a tier went.
struct Outcome {
    tier: Tier,
    counts: Counts,
    time: Duration,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.counts.failed == 0 && self.counts.passed > 0
    }
}

/// Runs the tiers, or all of them, and prints what came of it.
pub fn test(tiers: &[Tier], no_setup: bool) -> Result<ExitCode> {
    let is_chosen = |tier: &Tier| tiers.is_empty() || tiers.contains(tier);
    let tiers: Vec<_> = Tier::value_variants()
        .iter()
        .copied()
        .filter(is_chosen)
        .collect();
    if !no_setup && tiers.iter().any(|tier| tier.needs_root()) {
        setup::test_tools(false)?;
    }
    let programs = build(&tiers)?;
    for tier in &tiers {
        ensure!(
            programs.iter().any(|program| tier.has(program)),
            "tier {} has no test executable",
            tier.name()
        );
    }
    let mut outcomes = Vec::new();
    for tier in tiers {
        let programs = programs.iter().filter(|program| tier.has(program));
        outcomes.push(run(tier, programs)?);
    }
    print(&outcomes);
    if outcomes.iter().all(Outcome::is_good) {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}

fn build(tiers: &[Tier]) -> Result<Vec<Program>> {
    // Always the same packages: with others cargo would unify other features,
    // and compile the dependencies again.
    let mut args = vec!["test", "--no-run"];
    args.extend(["-p", "portredir-common", "-p", "portredir", "-p", "xtask"]);
    for tier in tiers {
        args.extend(["--test", tier.target()]);
        if *tier == Tier::Unit {
            args.extend(["--lib", "--bins"]);
        }
    }
    cargo::build(&args)
}

fn run<'a>(tier: Tier, programs: impl Iterator<Item = &'a Program>) -> Result<Outcome> {
    let start = Instant::now();
    let mut counts = Counts::default();
    for program in programs {
        println!("\n[{}] {}", tier.name(), program.name);
        run_program(tier, program, &mut counts)?;
    }
    Ok(Outcome {
        tier,
        counts,
        time: start.elapsed(),
    })
}

fn run_program(tier: Tier, program: &Program, counts: &mut Counts) -> Result<()> {
    let mut command = if tier.needs_root() {
        process::as_root("env")
    } else {
        Command::new("env")
    };
    // As cargo would: ours are those of xtask. Through env, as sudo drops them.
    let mut package = OsString::from("CARGO_MANIFEST_DIR=");
    package.push(&program.package);
    // What tests ask for, which sudo drops as well.
    let variables = std::env::vars_os()
        .filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PORTREDIR_TEST_"))
        .map(|(name, value)| [name, value].join(OsStr::new("=")));
    command
        .arg(package)
        .args(variables)
        .arg(&program.path)
        .args(tier.args())
        .current_dir(&program.package)
        .stdout(Stdio::piped());
    let context = || format!("run {}", program.path.display());
    let mut child = command.spawn().with_context(context)?;
    let stdout = child.stdout.take().context("read the tests' output")?;
    let mut stdout = BufReader::new(stdout);

    let failed = counts.failed;
    let mut line = Vec::new();
    let mut is_done = false;
    // Not to the end of the pipe: a process that a test left behind would keep
    // it open for ever.
    while !is_done && stdout.read_until(b'\n', &mut line).with_context(context)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        is_done = counts.read(text.trim_end());
        line.clear();
    }
    let status = child.wait().with_context(context)?;
    if !status.success() && counts.failed == failed {
        counts.failed += 1;
        counts.failures.push(format!("{}: {status}", program.name));
    }
    Ok(())
}

/// The table, what was skipped and what failed, and last the line that sums up.
fn print(outcomes: &[Outcome]) {
    println!("\ntier      passed  failed  skipped  seconds");
    for Outcome { tier, counts, time } in outcomes {
        println!(
            "{:<8} {:>7} {:>7} {:>8} {:>8.1}",
            tier.name(),
            counts.passed,
            counts.failed,
            counts.skipped,
            time.as_secs_f32()
        );
    }
    for Outcome { tier, counts, .. } in outcomes {
        for skip in &counts.skips {
            println!("skipped: {}: {skip}", tier.name());
        }
    }
    let mut sum = Counts::default();
    for Outcome { tier, counts, .. } in outcomes {
        for failure in &counts.failures {
            println!("failed: {}: {failure}", tier.name());
        }
        if counts.passed + counts.failed == 0 {
            println!("failed: {}: ran no test", tier.name());
        }
        sum.add(counts);
    }
    println!();
    println!("{sum}");
}
