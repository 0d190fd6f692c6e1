//! Runs the plan step by step.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::bail;
use fastrand::Rng;

use crate::bench::client::{self, Client};
use crate::bench::control;
use crate::bench::lab::{self, Lab, Means, Member, Site, State};
use crate::bench::load::request::Source;
use crate::bench::measure::{self, Entry, Role, Session};
use crate::bench::namespace::Namespace;
use crate::bench::plan::Plan;
use crate::bench::process::{Launch, OURSELVES};
use crate::bench::prog_run;
use crate::bench::progress::Progress;
use crate::bench::remote::Remote;
use crate::bench::report::{Status, Table, TestReport, VariantReport, abridge};
use crate::bench::traffic::{Protocol, Traffic};
use crate::bench::variant::Variant;
use crate::bench::verify;
use crate::cli::{Suite, Topology};
use crate::rule::Protocols;
use crate::sys::ethtool::Switch;

/// The time until a variant works, in microseconds.
const SETUP_US: u64 = 150_000;

/// A benchmark under way.
#[derive(Debug)]
pub struct Runner<'a> {
    plan: Plan,
    means: Means<'a>,
    rng: Rng,
    progress: Progress,
}

impl<'a> Runner<'a> {
    /// Makes a benchmark that has not begun.
    #[must_use]
    pub fn new(plan: Plan, means: Means<'a>, seed: u64) -> Self {
        Self {
            progress: Progress::new(forecast_us(&plan)),
            rng: Rng::with_seed(seed),
            plan,
            means,
        }
    }

    /// Measures everything that needs traffic between namespaces.
    ///
    /// # Errors
    ///
    /// When no variant works here, or the benchmark is to stop.
    pub fn traffic(&mut self) -> anyhow::Result<(Vec<VariantReport>, Vec<TestReport>)> {
        if self.plan.variants.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let progress = &self.progress;
        let mut lab = Lab::new(&self.plan.variants, self.means, |variant| {
            progress.step(format!("setting up {}", variant.name()));
            progress.advance(SETUP_US);
        })?;
        self.verify(&mut lab)?;
        if let State::Failed(reason) | State::Skipped(reason) = &lab.members[0].state {
            bail!("nothing works here, not even without redirecting: {reason}");
        }
        let mut client = self.client(Some(&lab.client))?;
        let mut tests = Vec::new();
        for traffic in self.plan.traffic().collect::<Vec<_>>() {
            tests.push(self.test(&lab, &mut client, traffic)?);
        }
        let variants = (1..=u8::MAX)
            .zip(&lab.members)
            .map(variant_report)
            .collect();
        Ok((variants, tests))
    }

    /// Measures everything that a server on another machine allows.
    ///
    /// # Errors
    ///
    /// When there is no server, or the benchmark is to stop.
    pub fn remote(
        &mut self,
        remote: &Remote,
    ) -> anyhow::Result<(Vec<VariantReport>, Vec<TestReport>)> {
        remote.check(self.plan.traffic())?;
        let mut variants = Vec::new();
        let mut entries = Vec::new();
        for entry in remote.entries() {
            self.means.stop.check()?;
            self.progress.step(format!("verifying {}", entry.name));
            let status = match verify::verify(entry.target.addr, Protocols::Tcp) {
                Ok(()) => Status::Verified,
                Err(error) => Status::Failed(format!("{error:#}")),
            };
            if let (Role::Direct, Status::Failed(reason)) = (entry.role, &status) {
                let addr = remote.addr;
                bail!("no server on {addr}: {reason}; type there: portredir bench serve");
            }
            variants.push(VariantReport {
                name: entry.name.clone(),
                version: None,
                rules: entry.target.addr.to_string(),
                status: status.clone(),
            });
            if status == Status::Verified {
                entries.push(entry);
            }
        }
        let mut client = self.client(None)?;
        let mut tests = Vec::new();
        for traffic in self.plan.traffic().collect::<Vec<_>>() {
            let (report, _) = self.measure(traffic, &entries, &mut client, || Ok(()))?;
            tests.push(report);
        }
        Ok((variants, tests))
    }

    /// Measures everything that needs no traffic.
    ///
    /// # Errors
    ///
    /// When a measurement fails, or the benchmark is to stop.
    pub fn tables(&self) -> anyhow::Result<Vec<Table>> {
        let mut tables = Vec::new();
        let opponents = &self.plan.opponents;
        for suite in &self.plan.suites {
            self.means.stop.check()?;
            match suite {
                Suite::ProgRun => {
                    self.progress.step("programs alone".to_owned());
                    tables.extend(self.prog_run()?);
                }
                Suite::Load => {
                    self.progress.step("loading and changing rules".to_owned());
                    tables.push(control::load(self.means.dir, opponents, self.means.stop)?);
                }
                Suite::Memory => {
                    self.progress.step("memory".to_owned());
                    tables.push(control::memory(self.means.dir, opponents, self.means.stop)?);
                }
                _ => {}
            }
            self.progress.advance(forecast_of(*suite));
        }
        Ok(tables)
    }

    fn client(&self, namespace: Option<&Namespace>) -> anyhow::Result<Client> {
        Client::start(Launch {
            namespace,
            scheduling: Some(self.means.scheduling),
            cgroup: None,
            dir: &self.means.dir.inner("client")?,
            is_piped: true,
        })
    }

    fn measure(
        &mut self,
        traffic: Traffic,
        entries: &[Entry],
        client: &mut Client,
        before: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<(TestReport, Vec<u64>)> {
        self.progress
            .step(format!("{}: {} variants", traffic.title(), entries.len()));
        let request = measure::Test {
            traffic,
            entries,
            effort: self.plan.effort(traffic),
            is_raw: self.plan.is_raw,
        };
        let session = Session {
            client,
            rng: &mut self.rng,
            stop: self.means.stop,
        };
        let progress = &self.progress;
        request.run(session, |work_us| progress.advance(work_us), before)
    }

    /// Measures in a separate process, like the load.
    fn prog_run(&self) -> anyhow::Result<[Table; 3]> {
        let namespace = lab::alone(format!("{}-p", self.means.dir.name))?;
        let rounds = if self.plan.is_full { 25_u32 } else { 10 };
        let launch = Launch {
            namespace: Some(&namespace),
            scheduling: Some(self.means.scheduling),
            cgroup: None,
            dir: &self.means.dir.inner("prog-run")?,
            is_piped: true,
        };
        let mut process = launch.start(&[OURSELVES, "bench", "prog-run", &rounds.to_string()])?;
        let (_stdin, stdout) = process.pipes();
        let lines = client::lines(stdout);
        loop {
            self.means.stop.check()?;
            match lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => {
                    let figures: prog_run::Figures = serde_json::from_str(&line)?;
                    for said in process.said().lines() {
                        self.progress.note(said);
                    }
                    return Ok(figures.into_tables());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("run programs on packets: {}", process.said())
                }
            }
        }
    }

    fn verify(&self, lab: &mut Lab) -> anyhow::Result<()> {
        let Lab {
            members, client, ..
        } = lab;
        for member in members {
            self.means.stop.check()?;
            let name = member.variant.name();
            if let State::Ready(site) = &member.state {
                self.progress.step(format!("verifying {name}"));
                let addr = site.target(&member.variant).addr;
                let protocols = member.variant.protocols();
                let verified = match member.variant.topology {
                    Topology::Local => site.verify(addr, self.means),
                    Topology::Host | Topology::Forward => {
                        client.enter(|| verify::verify(addr, protocols))?
                    }
                };
                if let Err(error) = verified {
                    member.state = State::Failed(format!("{error:#}"));
                }
            }
            if let State::Failed(reason) = &member.state {
                let line = format!("{name} does not what it should: {reason}");
                self.progress.note(&line);
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
                entries.push(entry(&self.plan, member, site));
                sites.push((site, member.variant));
            }
        }
        let is_udp = traffic.protocol() == Protocol::Udp;
        for (site, _) in &sites {
            site.set_gro(if is_udp { Switch::On } else { Switch::Off })?;
        }
        let dropped = || -> anyhow::Result<Vec<u64>> {
            sites.iter().map(|(site, _)| site.dropped()).collect()
        };
        let before = dropped()?;
        let flush = || {
            let mut tracking = sites.iter().filter(|(_, variant)| variant.tracks());
            tracking.try_for_each(|(site, _)| site.flush_conntrack())
        };
        let (mut report, sent) = self.measure(traffic, &entries, client, flush)?;
        if !is_udp {
            return Ok(report);
        }
        let after = dropped()?;
        for (i, row) in report.rows.iter_mut().enumerate() {
            // Each packet must have come to the socket, or the time belongs to something
            // else. A socket that sends does not wait for a receiver.
            let received = after[i] - before[i];
            let is_lossy = report.source == Source::RawSocket && received > 0;
            if received != sent[i] && !is_lossy && row.failure.is_none() {
                let reason = format!("{received} of {} packets were delivered", sent[i]);
                self.progress.note(&format!("{}: {reason}", row.variant));
                row.failure = Some(reason);
            }
        }
        Ok(report)
    }
}

fn entry(plan: &Plan, member: &Member, site: &Site) -> Entry {
    let Variant {
        rules,
        has_conntrack,
        ..
    } = member.variant;
    Entry {
        name: member.variant.name(),
        target: site.target(&member.variant),
        role: plan.role(&member.variant),
        setting: (rules, has_conntrack),
    }
}

fn variant_report((number, member): (u8, &Member)) -> VariantReport {
    let ends = lab::ends(number);
    VariantReport {
        name: member.variant.name(),
        version: member.version.clone(),
        status: match &member.state {
            State::Ready(_) => Status::Verified,
            State::Skipped(reason) => Status::Skipped(reason.clone()),
            State::Failed(reason) => Status::Failed(reason.clone()),
        },
        rules: abridge(&member.variant.rules_text(ends)),
    }
}

fn forecast_us(plan: &Plan) -> u64 {
    let traffic = plan.traffic().map(|traffic| {
        let takes_part = |variant: &&Variant| plan.takes_part(variant, traffic);
        let variants = plan.variants.iter().filter(takes_part).count() as u64;
        variants * measure::forecast_us(traffic) * measure::cycles(plan.effort(traffic))
    });
    let suites: u64 = plan.suites.iter().map(|suite| forecast_of(*suite)).sum();
    traffic.sum::<u64>() + plan.variants.len() as u64 * SETUP_US + suites
}

/// The forecast of a suite without traffic, in microseconds.
const fn forecast_of(suite: Suite) -> u64 {
    match suite {
        Suite::ProgRun => 12_000_000,
        Suite::Load => 8_000_000,
        Suite::Memory => 4_000_000,
        _ => 0,
    }
}
