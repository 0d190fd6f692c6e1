//! The tests by tier. The user who started this program builds all of them and
//! runs those that need no root; only tests that change the network run as root.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::cards;
use crate::cargo::{self, Program};
use crate::instructions;
use crate::kube;
use crate::process;
use crate::report::Counts;
use crate::setup::{self, Missing};
use crate::systemd;
use crate::tested;
use crate::vm::{Card, Vm};

/// The feature of the Kubernetes node agent, and the tier of its tests.
const AGENT: &str = "agent";

/// A group of tests that need the same things.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Tier {
    /// The unit tests of the crates, and the datapath without a kernel; no root.
    Unit,
    /// The help, exit codes and output of the program; no root.
    Cli,
    /// The Kubernetes node agent, without a cluster; no root.
    Agent,
    /// One packet through the programs in the kernel; root.
    ProgRun,
    /// Connections through portredir, in network namespaces; root.
    Netns,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Cli => "cli",
            Self::Agent => AGENT,
            Self::ProgRun => "prog-run",
            Self::Netns => "netns",
        }
    }

    /// Cargo's name of the integration test; none for unit tests of a feature.
    fn target(self) -> Option<&'static str> {
        match self {
            Self::Unit => Some("host"),
            Self::Cli => Some("cli"),
            Self::Agent => None,
            Self::ProgRun => Some("prog_run"),
            Self::Netns => Some("netns"),
        }
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::ProgRun | Self::Netns)
    }

    fn has(self, program: &Program) -> bool {
        match program.kind.as_str() {
            "test" => self.target() == Some(&program.name),
            AGENT => self == Self::Agent,
            _ => program.is_test && self == Self::Unit,
        }
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            // These tests wait for timers more than for a CPU, but each one starts
            // several processes.
            Self::Netns => &["--test-threads=2"],
            Self::Agent => &["agent::"],
            _ => &[],
        }
    }

    /// How many tests that fail may be asked again, alone. What these tests do
    /// takes real time, and a machine that is busy elsewhere can delay any step.
    fn retries(self) -> usize {
        if self == Self::Netns { 8 } else { 0 }
    }
}

/// How to run the tests.
#[derive(Args)]
pub struct Options {
    /// Skip the search for, and the installation of, programs that the tests call.
    #[arg(long)]
    no_setup: bool,
    /// Run the tests that need root in a virtual machine with Debian's newest
    /// kernel of this series, for example 6.1 or 7.2; can be given several times.
    #[arg(long)]
    kernel: Vec<String>,
    /// Install the Debian package in this release of Debian with systemd as PID 1, in a
    /// virtual machine, instead of all tests; can be given several times.
    #[arg(long, value_enum, group = "lab", conflicts_with_all = ["kernel", "tiers"])]
    pub systemd: Vec<systemd::Suite>,
    /// Run the Kubernetes node agent with real components of a cluster, instead of all
    /// tests: all stages when none is named. The components are built once, in half an hour.
    #[arg(long, value_enum, value_name = "STAGE", num_args = 0..)]
    #[arg(group = "lab", conflicts_with_all = ["kernel", "systemd", "tiers"])]
    pub kube: Option<Vec<kube::Stage>>,
    /// With --systemd, --kube or --instructions, take a program that was built before.
    #[arg(long, value_name = "PATH", requires = "lab")]
    program: Option<PathBuf>,
    /// With --kernel, run the tests with network cards of all models that QEMU emulates,
    /// instead of all tests.
    #[arg(long, requires = "kernel", conflicts_with_all = ["tiers", "instructions"])]
    cards: bool,
    /// With --kernel, count the machine instructions of `portredir bench` and compare them
    /// with limits, instead of all tests.
    #[arg(long, requires = "kernel", conflicts_with = "tiers", group = "lab")]
    pub instructions: bool,
    /// Write the table of outcomes to docs/TESTED.md.
    #[arg(long)]
    record: bool,
    /// Run all tests even without hardware virtualization, which takes hours.
    #[arg(long, requires = "kernel")]
    all: bool,
    /// Arguments for the test programs, for example a part of test names.
    #[arg(last = true)]
    args: Vec<String>,
}

/// The outcome of a tier.
struct Outcome {
    tier: Tier,
    /// The release of the kernel, unless it is this one.
    kernel: Option<String>,
    counts: Counts,
    time: Duration,
}

impl Outcome {
    fn name(&self) -> String {
        let name = self.tier.name();
        let kernel = self.kernel.iter().map(|kernel| format!(" on {kernel}"));
        format!("{name}{}", kernel.collect::<String>())
    }

    fn is_good(&self) -> bool {
        self.counts.failed == 0 && self.counts.passed > 0
    }
}

/// Runs the tiers, or all of them, and prints the outcomes.
pub fn test(tiers: &[Tier], options: &Options) -> Result<ExitCode> {
    if !options.systemd.is_empty() || options.kube.is_some() {
        return lab(options);
    }
    if options.instructions {
        return instructions(options);
    }
    let has_kernels = !options.kernel.is_empty();
    if let Some(tier) = tiers.iter().find(|tier| has_kernels && !tier.needs_root()) {
        bail!("tier {} runs without a kernel of its own", tier.name());
    }
    let is_chosen = |tier: &Tier| {
        if options.cards {
            return *tier == Tier::Netns;
        }
        tiers.contains(tier) || (tiers.is_empty() && (!has_kernels || tier.needs_root()))
    };
    let tiers: Vec<_> = Tier::value_variants()
        .iter()
        .copied()
        .filter(is_chosen)
        .collect();
    if !options.no_setup && tiers.iter().any(|tier| tier.needs_root()) {
        setup::test_tools(Missing::Install)?;
    }
    if !options.no_setup && has_kernels {
        setup::kernel_tools(Missing::Install)?;
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
    for series in &options.kernel {
        outcomes.extend(in_guest(series, &tiers, &programs, options)?);
    }
    if !has_kernels {
        for &tier in &tiers {
            outcomes.push(run(tier, &programs, None, options)?);
        }
    }
    print(&outcomes);
    if outcomes.iter().all(Outcome::is_good) {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}

/// Runs tiers on another kernel.
fn in_guest(
    series: &str,
    tiers: &[Tier],
    programs: &[Program],
    options: &Options,
) -> Result<Vec<Outcome>> {
    let cards = if options.cards {
        &Card::ALL[..]
    } else {
        &[Card::VirtioNet]
    };
    let vm = Vm::new(series, cards)?;
    let mut outcomes = Vec::new();
    for &tier in tiers {
        let outcome = run(tier, programs, Some(&vm), options)?;
        if options.cards && options.record {
            let table = cards::table(&outcome.counts);
            let text = format!("Linux {}.\n\n{table}", vm.release());
            tested::record(&format!("network cards on {series}"), &text)?;
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Runs the tests of a whole machine, or of a cluster.
fn lab(options: &Options) -> Result<ExitCode> {
    let program = options.program.clone();
    let Some(stages) = &options.kube else {
        if !options.no_setup {
            setup::systemd_tools(Missing::Install)?;
        }
        return systemd::test(&options.systemd, program, options.record);
    };
    if !options.no_setup {
        setup::kube_tools(Missing::Install)?;
    }
    kube::test(&kube::Options {
        stages: stages.clone(),
        program,
        record: options.record,
    })
}

/// Counts the instructions of the benchmark.
fn instructions(options: &Options) -> Result<ExitCode> {
    if !options.no_setup {
        setup::count_tools(Missing::Install)?;
    }
    instructions::test(&options.kernel, options.program.as_deref(), options.record)
}

fn build(tiers: &[Tier]) -> Result<Vec<Program>> {
    // The packages are always equal: with others cargo would unify other
    // features, and compile the dependencies again.
    let mut args = vec!["test", "--no-run"];
    args.extend(["-p", "portredir-common", "-p", "portredir", "-p", "xtask"]);
    for tier in tiers {
        args.extend(tier.target().into_iter().flat_map(|test| ["--test", test]));
        if *tier == Tier::Unit {
            args.extend(["--lib", "--bins"]);
        }
    }
    let mut programs = Vec::new();
    if tiers.iter().any(|tier| tier.target().is_some()) {
        programs = cargo::build(&args)?;
    }
    if tiers.contains(&Tier::Agent) {
        programs.extend(build_agent()?);
    }
    Ok(programs)
}

/// Builds the unit tests once more, with the feature of the agent and its dependencies.
fn build_agent() -> Result<Vec<Program>> {
    let args = ["test", "--no-run", "-p", "portredir", "--lib", "--features"];
    let programs = cargo::build(&[&args[..], &[AGENT]].concat())?.into_iter();
    Ok(programs
        .map(|program| Program {
            kind: AGENT.to_owned(),
            ..program
        })
        .collect())
}

fn run(tier: Tier, programs: &[Program], vm: Option<&Vm>, options: &Options) -> Result<Outcome> {
    let start = Instant::now();
    let mut outcome = Outcome {
        tier,
        kernel: vm.map(|vm| vm.release().to_owned()),
        counts: Counts::default(),
        time: Duration::ZERO,
    };
    for program in programs.iter().filter(|program| tier.has(program)) {
        println!("\n[{}] {}", outcome.name(), program.name);
        let mut args: Vec<_> = tier.args().iter().copied().map(str::to_owned).collect();
        if options.cards && options.args.is_empty() {
            args.push(cards::TESTS.to_owned());
        }
        args.extend_from_slice(&options.args);
        let command = match vm {
            None => here(tier, program, &args),
            Some(vm) => there(vm, program, &args, options)?,
        };
        let mut counts = Counts::default();
        let is_done = run_program(command, program, &mut counts)?;
        if vm.is_none() && counts.failures.len() <= tier.retries() {
            ask_again(tier, program, &mut counts)?;
        }
        outcome.counts.add(counts);
        let counts = &mut outcome.counts;
        if let Some(vm) = vm.filter(|_| !is_done) {
            counts.failed += 1;
            let words = vm.last_words();
            counts.failures.push(format!(
                "{}: the virtual machine ended early; the last kernel messages:\n{words}",
                program.name
            ));
        }
    }
    outcome.time = start.elapsed();
    Ok(outcome)
}

/// Runs each failed test twice more, without others beside it. One that passes
/// both times is unsteady: the summary names it, but it is no failure.
fn ask_again(tier: Tier, program: &Program, counts: &mut Counts) -> Result<()> {
    for name in std::mem::take(&mut counts.failures) {
        println!("\n[{}] {name} again, alone, twice", tier.name());
        let args = ["--exact", &name, "--test-threads=1"].map(str::to_owned);
        let mut again = Counts::default();
        for _ in 0..2 {
            run_program(here(tier, program, &args), program, &mut again)?;
        }
        if again.passed == 2 && again.failed == 0 {
            counts.failed -= 1;
            counts.passed += 1;
            counts.unsteady.push(name);
        } else {
            counts.failures.push(name);
        }
    }
    Ok(())
}

/// A command that runs a test program on this kernel.
fn here(tier: Tier, program: &Program, args: &[String]) -> Command {
    let mut command = if tier.needs_root() {
        process::as_root("env")
    } else {
        Command::new("env")
    };
    // Cargo sets this variable for tests; here it is that of xtask. The variables
    // go through env, since sudo drops them.
    let mut package = OsString::from("CARGO_MANIFEST_DIR=");
    package.push(&program.package);
    command
        .arg(package)
        .args(variables())
        .arg(&program.path)
        .args(args)
        .current_dir(&program.package);
    command
}

/// The variables that the tests read. Neither sudo nor a virtual machine passes
/// them on.
fn variables() -> impl Iterator<Item = String> {
    // Other variables need not be text.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("PORTREDIR_TEST_"))
        .map(|(name, value)| format!("{name}={value}"))
}

/// A command that runs a test program in a virtual machine.
fn there(vm: &Vm, program: &Program, args: &[String], options: &Options) -> Result<Command> {
    let mut env = vec![
        format!("CARGO_MANIFEST_DIR={}", program.package.display()),
        // Tests may take these cards, since nothing else uses them.
        format!("TEST_NICS={}", vm.nics()),
    ];
    if vm.is_emulated() {
        env.push(format!("TEST_SLOWNESS={}", Vm::SLOWNESS));
        if !options.all && !options.cards && options.args.is_empty() {
            env.push("TEST_SUBSET=1".to_owned());
            env.push("PORTREDIR_TEST_PACKETS=100000".to_owned());
        }
    }
    env.extend(variables());
    let path = program.path.display().to_string();
    let mut words = vec![path.as_str()];
    words.extend(args.iter().map(String::as_str));
    let is_long = vm.is_emulated() && (options.all || options.cards);
    let hours = if is_long { 12 } else { 2 };
    let limit = Duration::from_secs(hours * 3600);
    vm.command(limit, &program.package, &env, &words)
}

/// Runs a test program and counts its tests. Returns whether the program printed
/// its last line.
fn run_program(mut command: Command, program: &Program, counts: &mut Counts) -> Result<bool> {
    command.stdout(Stdio::piped());
    let context = || format!("run {}", program.path.display());
    let mut child = command.spawn().with_context(context)?;
    let stdout = child.stdout.take().context("read the tests' output")?;
    let mut stdout = BufReader::new(stdout);

    let failed = counts.failed;
    let mut line = Vec::new();
    let mut is_done = false;
    // Reading ends before the end of the pipe: a process that a test left behind
    // would keep the pipe open for ever.
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
    Ok(is_done)
}

/// Prints a table, the skipped and the failed tests, and the sum in the last line.
fn print(outcomes: &[Outcome]) {
    let names: Vec<_> = outcomes.iter().map(Outcome::name).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0).max(8);
    println!("\n{:<width$}  passed  failed  skipped  seconds", "tier");
    for (name, Outcome { counts, time, .. }) in names.iter().zip(outcomes) {
        println!(
            "{name:<width$} {:>7} {:>7} {:>8} {:>8.1}",
            counts.passed,
            counts.failed,
            counts.skipped,
            time.as_secs_f32()
        );
    }
    for (name, outcome) in names.iter().zip(outcomes) {
        for skip in &outcome.counts.skips {
            println!("skipped: {name}: {skip}");
        }
    }
    for (name, outcome) in names.iter().zip(outcomes) {
        for test in &outcome.counts.unsteady {
            println!("unsteady: {name}: {test}: failed once, then passed twice alone");
        }
    }
    let mut sum = Counts::default();
    for (name, Outcome { counts, .. }) in names.iter().zip(outcomes) {
        for failure in &counts.failures {
            println!("failed: {name}: {failure}");
        }
        if counts.passed + counts.failed == 0 {
            println!("failed: {name}: ran no test");
        }
        sum.add(counts.clone());
    }
    println!();
    println!("{sum}");
}
