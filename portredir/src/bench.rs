//! `portredir bench`: measures what a redirect costs on this machine, compared with other
//! redirectors and with no redirect at all.
//!
//! [`plan`] says what is compared, and [`runner`] does it. [`lab`] makes the hosts, each
//! a [`namespace`] with a [`server`], other [`process`]es and, by a [`redirector`], one
//! of the [`variant`]s. [`verify`] checks that each of them works. [`load`] is a separate
//! process that sends [`traffic`] to them, turn by turn ([`schedule`]), and [`client`]
//! controls it. [`statistics`] and [`measure`] compute figures from its results.
//! [`prog_run`] and [`control`] measure what needs no traffic, [`remote`] asks a server
//! on another machine. [`report`] tells all of it, with the [`environment`] it depends
//! on.

pub mod client;
pub mod conntrack;
pub mod control;
pub mod environment;
pub mod lab;
pub mod load;
pub mod measure;
pub mod namespace;
pub mod plan;
pub mod process;
pub mod prog_run;
pub mod program;
pub mod progress;
pub mod redirector;
pub mod remote;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod server;
pub mod statistics;
pub mod stop;
pub mod sweep;
pub mod traffic;
pub mod variant;
pub mod verify;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use portredir_common::net::Port;
use tokio::signal::unix::{SignalKind, signal};

use self::environment::{Before, Environment};
use self::lab::Means;
use self::namespace::Dir;
use self::plan::Plan;
use self::process::Scheduling;
use self::remote::Remote;
use self::report::{Report, Status, VariantReport};
use self::runner::Runner;
use self::stop::Stop;
use crate::cli::{BenchArgs, BenchRole};
use crate::host::preflight;
use crate::rule::Protocols;

/// Runs the benchmark that the arguments ask for.
///
/// # Errors
///
/// When something is missing or fails, or [`stop::Interrupted`]. Nothing is left behind
/// then.
pub async fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match args.role {
        Some(BenchRole::Load) => return load::load(),
        Some(BenchRole::Verify { addr }) => {
            verify::verify(addr, Protocols::Tcp)?;
            eprintln!("{}", verify::VERIFIED);
            return Ok(());
        }
        Some(BenchRole::ProgRun { rounds }) => return prog_run::prog_run(rounds),
        Some(BenchRole::Serve { port }) => match server::serve(Port::new(port))? {},
        None => {}
    }
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Stop::default();
    // The work has its own thread because it waits for processes. Its guards remove what
    // it made when the thread ends, also by a panic.
    let mut work = {
        let (args, stop) = (args.clone(), stop.clone());
        tokio::task::spawn_blocking(move || bench(&args, &stop))
    };
    loop {
        tokio::select! {
            result = &mut work => match result {
                Ok(result) => return result,
                Err(_) => bail!("the benchmark panicked; what it made is removed"),
            },
            _ = hang_up.recv() => stop.set(),
            _ = interrupt.recv() => stop.set(),
            _ = terminate.recv() => stop.set(),
        }
    }
}

fn bench(args: &BenchArgs, stop: &Stop) -> anyhow::Result<()> {
    let start = Instant::now();
    preflight::check_capabilities()?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "not permitted: network namespaces need root; run it with sudo"
    );
    lab::check_tools()?;
    sweep::sweep();
    let dir = Dir::new()?;
    let scheduling = Scheduling::choose()?;
    let before = Before::read();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let plan = Plan::of(args)?;
    let began = jiff::Timestamp::now();
    let means = Means {
        dir: &dir,
        scheduling,
        stop,
    };
    let mut runner = Runner::new(plan, means, seed);
    let (variants, tests) = match &args.remote {
        Some(addr) => runner.remote(&Remote {
            addr: *addr,
            ports: args.ports.clone(),
        })?,
        None => runner.traffic()?,
    };
    let tables = runner.tables()?;
    drop(runner);
    let report = Report {
        schema: report::SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: command(),
        seed,
        began: began.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        seconds: start.elapsed().as_secs_f64(),
        environment: Environment::read(&before, scheduling),
        variants,
        tests,
        tables,
    };
    tell(args, &report)?;
    let failed = |variant: &VariantReport| matches!(variant.status, Status::Failed(_));
    let failed = report
        .variants
        .iter()
        .filter(|variant| failed(variant))
        .count();
    ensure!(
        failed == 0,
        "{failed} variants do not what they should, see above"
    );
    Ok(())
}

fn tell(args: &BenchArgs, report: &Report) -> anyhow::Result<()> {
    let text = report::text::render(report);
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).context("print")?;
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> anyhow::Result<String>| match path {
        Some(path) => fs::write(path, text()?).with_context(|| format!("write {}", path.display())),
        None => Ok(()),
    };
    write(&args.json, &|| Ok(report.to_json()?))?;
    write(&args.html, &|| report::html::render(report))?;
    write(&args.markdown, &|| Ok(report::markdown::render(report)))?;
    Ok(())
}

/// The command line as it was typed, without the path of this program.
fn command() -> String {
    let words = std::env::args().skip(1);
    let words: Vec<_> = std::iter::once("portredir".to_owned())
        .chain(words)
        .collect();
    words.join(" ")
}
