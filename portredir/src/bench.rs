//! `portredir bench`: what redirecting costs, here, compared with what others do and
//! with not redirecting at all.
//!
//! [`plan`] says what is compared. [`lab`] makes the hosts, with the redirecting of
//! [`variant`]s in them, each in a [`namespace`] with a [`server`] and other
//! [`process`]es. [`verify`] looks whether they do what they should. [`load`] is a
//! process of its own that puts [`traffic`] on them, turn by turn ([`schedule`]), and
//! [`client`] is our side of it. [`statistics`] and [`measure`] make figures of
//! what comes back. [`prog_run`] and [`control`] measure what needs no traffic.
//! [`report`] tells all of it, with the [`environment`] it depends on.

pub mod client;
pub mod environment;
pub mod lab;
pub mod load;
pub mod measure;
pub mod namespace;
pub mod plan;
pub mod process;
pub mod progress;
pub mod report;
pub mod schedule;
pub mod server;
pub mod statistics;
pub mod traffic;
pub mod variant;
pub mod verify;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use fastrand::Rng;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

pub use self::traffic::Suite;
pub use self::variant::{Opponent, TARGET_PORT};

use self::client::Client;
use self::environment::{Before, Environment};
use self::lab::{Lab, State};
use self::load::Source;
use self::measure::Entry;
use self::plan::Plan;
use self::process::{Launch, Scheduling};
use self::progress::Progress;
use self::report::{Report, Status, TestReport, VariantReport, abridge};
use self::traffic::{Protocol, Traffic};
use self::variant::Variant;
use crate::cli::{BenchArgs, BenchRole};
use crate::preflight;

/// Somebody wants it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("interrupted; everything that was made is removed")]
pub struct Interrupted;

/// Tells the work that it is to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// To be asked wherever the work can end.
    ///
    /// # Errors
    ///
    /// [`Interrupted`], when it is to.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does what was asked for.
///
/// # Errors
///
/// What is missing, what went wrong, or [`Interrupted`]. Nothing is left then.
pub async fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match args.role {
        Some(BenchRole::Load) => return load::load(),
        Some(BenchRole::Serve { port }) => match server::serve(port)? {},
        None => {}
    }
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Stop::default();
    // On a thread of its own: it waits for processes. What it made is removed when
    // it ends, be it by a panic.
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
    let scheduling = Scheduling::choose()?;
    let before = Before::read();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let plan = Plan::of(args);
    let began = jiff::Timestamp::now();
    let mut bench = Bench {
        progress: Progress::new(forecast_us(&plan)),
        rng: Rng::with_seed(seed),
        scheduling,
        stop,
        plan,
    };
    let (variants, tests) = bench.traffic()?;
    let tables = Vec::new();
    drop(bench.progress);
    let report = Report {
        schema: report::SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: command(),
        seed,
        began: began.to_string(),
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
    print!("{}", report::text::render(report));
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> anyhow::Result<String>| match path {
        Some(path) => fs::write(path, text()?).with_context(|| format!("write {}", path.display())),
        None => Ok(()),
    };
    write(&args.json, &|| Ok(report.to_json()?))?;
    write(&args.markdown, &|| Ok(report::markdown::render(report)))?;
    Ok(())
}

/// As it was typed, without where this program is.
fn command() -> String {
    let words = std::env::args().skip(1);
    let words: Vec<_> = std::iter::once("portredir".to_owned())
        .chain(words)
        .collect();
    words.join(" ")
}

/// What a variant takes until it works, in microseconds.
const SETUP_US: u64 = 150_000;

fn forecast_us(plan: &Plan) -> u64 {
    let traffic = plan.traffic().map(|traffic| {
        let takes_part = |variant: &&Variant| plan.takes_part(variant, traffic);
        let variants = plan.variants.iter().filter(takes_part).count() as u64;
        variants * measure::forecast_us(traffic) * measure::cycles(plan.effort(traffic))
    });
    traffic.sum::<u64>() + plan.variants.len() as u64 * SETUP_US
}

struct Bench<'a> {
    plan: Plan,
    scheduling: Scheduling,
    rng: Rng,
    stop: &'a Stop,
    progress: Progress,
}

impl Bench<'_> {
    /// All that is measured by traffic.
    fn traffic(&mut self) -> anyhow::Result<(Vec<VariantReport>, Vec<TestReport>)> {
        if self.plan.variants.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut lab = Lab::new(&self.plan.variants, self.scheduling, self.stop, |variant| {
            self.progress.step(format!("setting up {}", variant.name()));
            self.progress.advance(SETUP_US);
        })?;
        self.verify(&mut lab)?;
        let direct = &lab.members[0];
        if let State::Failed(reason) | State::Skipped(reason) = &direct.state {
            bail!("nothing works here, not even without redirecting: {reason}");
        }
        let dir = lab.dir().to_owned();
        let launch = Launch {
            namespace: Some(&lab.client),
            scheduling: Some(self.scheduling),
            cgroup: None,
            dir: &dir,
            is_piped: true,
        };
        let mut client = Client::start(launch)?;
        let mut tests = Vec::new();
        for traffic in self.plan.traffic().collect::<Vec<_>>() {
            tests.push(self.test(&lab, &mut client, traffic)?);
        }
        let variants = lab.members.iter().map(variant_report).collect();
        Ok((variants, tests))
    }

    fn verify(&self, lab: &mut Lab) -> anyhow::Result<()> {
        let Lab {
            members, client, ..
        } = lab;
        for member in members {
            self.stop.check()?;
            let State::Ready(site) = &member.state else {
                continue;
            };
            let name = member.variant.name();
            self.progress.step(format!("verifying {name}"));
            let addr = site.target(&member.variant).addr;
            let has_udp = member.variant.has_udp();
            let verified = client.enter(|| verify::verify(addr, has_udp))?;
            if let Err(error) = verified {
                self.progress
                    .note(&format!("{name} does not what it should: {error:#}"));
                member.state = State::Failed(format!("{error:#}"));
            }
        }
        Ok(())
    }

    fn test(
        &mut self,
        lab: &Lab,
        client: &mut Client,
        traffic: Traffic,
    ) -> anyhow::Result<TestReport> {
        let mut entries = Vec::new();
        let mut sites = Vec::new();
        for member in &lab.members {
            if let Some(site) = member.site()
                && self.plan.takes_part(&member.variant, traffic)
            {
                let Variant {
                    rules,
                    has_conntrack,
                    ..
                } = member.variant;
                entries.push(Entry {
                    name: member.variant.name(),
                    target: site.target(&member.variant),
                    role: self.plan.role(&member.variant),
                    setting: (rules, has_conntrack),
                });
                sites.push((site, member.variant));
            }
        }
        let effort = self.plan.effort(traffic);
        self.progress
            .step(format!("{}: {} variants", traffic.title(), entries.len()));
        let is_udp = traffic.protocol() == Protocol::Udp;
        for (site, _) in &sites {
            site.set_gro(is_udp)?;
        }
        let dropped = |sites: &[(&lab::Site, Variant)]| -> anyhow::Result<Vec<u64>> {
            sites.iter().map(|(site, _)| site.dropped()).collect()
        };
        let before = dropped(&sites)?;
        let flush = || {
            let tracking = sites.iter().filter(|(_, variant)| variant.tracks());
            for (site, _) in tracking {
                site.flush_conntrack()?;
            }
            Ok(())
        };
        let (mut report, sent) = measure::measure(
            traffic,
            &entries,
            effort,
            client,
            &mut self.rng,
            self.stop,
            &self.progress,
            flush,
        )?;
        if is_udp {
            let after = dropped(&sites)?;
            for (i, row) in report.rows.iter_mut().enumerate() {
                // Each packet came to the socket, or the time is that of something else.
                let received = after[i] - before[i];
                let is_lossy = report.source == Source::RawSocket && received > 0;
                if received != sent[i] && !is_lossy && row.failure.is_none() {
                    let reason = format!("{received} of {} packets were delivered", sent[i]);
                    self.progress.note(&format!("{}: {reason}", row.variant));
                    row.failure = Some(reason);
                }
            }
        }
        Ok(report)
    }
}

fn variant_report(member: &lab::Member) -> VariantReport {
    VariantReport {
        name: member.variant.name(),
        version: member.version.clone(),
        status: match &member.state {
            State::Ready(_) => Status::Verified,
            State::Skipped(reason) => Status::Skipped(reason.clone()),
            State::Failed(reason) => Status::Failed(reason.clone()),
        },
        rules: abridge(&member.variant.rules_text()),
    }
}
