//! `cargo xtask`: what developers and CI run. Nothing here is needed to build
//! or to install portredir.

mod cargo;
mod ebpf;
mod fuzz;
mod lint;
mod mutants;
mod process;
mod report;
mod root;
mod setup;
mod sources;
mod stack;
mod test;
mod toolchain;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::lint::Detail;

/// Tasks around the portredir workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build portredir and run it, through sudo when not root.
    Run {
        /// Arguments of portredir, as in `-- --iface all 80:8080`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run the tests and count them; root's tests through sudo when not root.
    Test {
        /// What to run; everything when none is named.
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
    /// Install the programs that the tests call, where they are missing.
    Setup {
        /// What `build-ebpf` needs, instead of what the tests need.
        #[arg(long)]
        ebpf: bool,
        /// What `bench` compares with, instead; Debian starts nginx and haproxy as
        /// services when it installs them.
        #[arg(long, conflicts_with = "ebpf")]
        bench: bool,
        /// What `test --kernel` needs, instead.
        #[arg(long, conflicts_with_all = ["ebpf", "bench"])]
        kernel: bool,
        /// Only tell what is missing.
        #[arg(long)]
        check: bool,
    },
    /// Compile the datapath into the object that portredir embeds.
    BuildEbpf {
        /// Write nothing: fail when the committed object is not what the
        /// sources give.
        #[arg(long)]
        check: bool,
    },
    /// Feed random input to what reads rules, files, what a process left, and to
    /// the datapath.
    Fuzz {
        /// Which; all, one after another, when none is named.
        target: Option<fuzz::Target>,
        /// How long each.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// Put defects into a copy of the datapath, one at a time, and see that the
    /// tests find them.
    Mutants,
    /// Build portredir and run `portredir bench` as root.
    Bench {
        /// Arguments of `portredir bench`, as in `-- --full --html report.html`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
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
        Task::Setup {
            ebpf: true, check, ..
        } => setup::ebpf_tools(check)?,
        Task::Setup {
            bench: true, check, ..
        } => setup::bench_tools(check)?,
        Task::Setup {
            kernel: true,
            check,
            ..
        } => setup::kernel_tools(check)?,
        Task::Setup { check, .. } => setup::test_tools(check)?,
        Task::BuildEbpf { check: false } => ebpf::build()?,
        Task::BuildEbpf { check: true } => ebpf::check()?,
        Task::Fuzz { target, seconds } => fuzz::fuzz(target, seconds)?,
        Task::Mutants => mutants::mutants()?,
        Task::Bench { args } => cargo::run(&[vec!["bench".into()], args].concat())?,
    }
    Ok(ExitCode::SUCCESS)
}
