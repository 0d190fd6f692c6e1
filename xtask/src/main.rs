//! `cargo xtask`: the tasks of developers and CI. Building and installing
//! portredir needs none of them.

mod cards;
mod cargo;
mod ebpf;
mod fuzz;
mod image;
mod instructions;
mod kube;
mod lint;
mod mutants;
mod package;
mod process;
mod release;
mod report;
mod root;
mod setup;
mod sources;
mod stack;
mod systemd;
mod test;
mod tested;
mod toolchain;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use self::lint::Detail;
use self::setup::Missing;

/// Tasks around the portredir workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build portredir and run it, through sudo unless started by root.
    Run {
        /// Arguments of portredir, for example `-- --iface all 80:8080`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run the tests and count them; tests that need root run through sudo.
    Test {
        /// Tiers of tests to run; all of them when none is named.
        tiers: Vec<test::Tier>,
        #[command(flatten)]
        options: test::Options,
    },
    /// Check formatting, lints, docs, who imports whom, and the sizes of files and
    /// functions; a warning is an error.
    Lint {
        /// Also print every exception and every place that is counted.
        #[arg(long)]
        list: bool,
    },
    /// Install missing programs that the tests call.
    Setup(SetupOptions),
    /// Compile the datapath into the object that portredir embeds.
    BuildEbpf {
        /// Write nothing: fail when the committed object differs from what the
        /// sources give.
        #[arg(long)]
        check: bool,
    },
    /// Feed random input to the parsers of rules, configuration and saved state, and
    /// to the datapath.
    Fuzz {
        /// The fuzz target; all of them, one after another, when none is named.
        target: Option<fuzz::Target>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// Put defects into a copy of the datapath, one at a time, and check that the
    /// tests find each of them.
    Mutants,
    /// Build a package below target/package, the same bytes every time.
    Package(package::Options),
    /// Check whether this commit can be released.
    Release(release::Options),
    /// Build the container image with the Kubernetes node agent, an OCI layout in a tar
    /// file below target/image.
    Image(image::Options),
    /// Build portredir and run `portredir bench` as root.
    Bench {
        /// Arguments of `portredir bench`, for example `-- --full --html report.html`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// The programs to install.
#[derive(Args)]
struct SetupOptions {
    /// Install the tools of `build-ebpf` instead.
    #[arg(long)]
    ebpf: bool,
    /// Install the programs that `bench` compares with instead; Debian starts
    /// nginx and haproxy as services when they are installed.
    #[arg(long, conflicts_with = "ebpf")]
    bench: bool,
    /// Install the tools of `test --kernel` instead.
    #[arg(long, conflicts_with_all = ["ebpf", "bench"])]
    kernel: bool,
    /// Install nothing: fail when something is missing, and name it.
    #[arg(long)]
    check: bool,
}

impl SetupOptions {
    fn run(&self) -> Result<()> {
        let missing = if self.check {
            Missing::Report
        } else {
            Missing::Install
        };
        match self {
            Self { ebpf: true, .. } => setup::ebpf_tools(missing),
            Self { bench: true, .. } => setup::bench_tools(missing),
            Self { kernel: true, .. } => setup::kernel_tools(missing),
            _ => setup::test_tools(missing),
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Run { args } => cargo::run(&args)?,
        Task::Test { tiers, options } => return test::test(&tiers, &options),
        Task::Lint { list: false } => lint::lint(Detail::Summary)?,
        Task::Lint { list: true } => lint::lint(Detail::Everything)?,
        Task::Setup(options) => options.run()?,
        Task::BuildEbpf { check: false } => ebpf::build()?,
        Task::BuildEbpf { check: true } => ebpf::check()?,
        Task::Fuzz { target, seconds } => fuzz::fuzz(target, seconds)?,
        Task::Mutants => mutants::mutants()?,
        Task::Package(options) => package::package(&options)?,
        Task::Release(options) => release::release(&options)?,
        Task::Image(options) => image::image(&options)?,
        Task::Bench { args } => cargo::run(&[vec!["bench".into()], args].concat())?,
    }
    Ok(ExitCode::SUCCESS)
}
