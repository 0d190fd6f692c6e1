//! The foreground run: plan, attach, follow the host, count, detach.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use futures_util::TryStreamExt as _;
use netlink_packet_route::tc::TcHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::cli::Cli;
use crate::counters::{InterfaceReport, Report};
use crate::datapath::{Datapath, Sizes, program_name};
use crate::interface::{Netlink, Snapshot};
use crate::plan::{Engine, EngineChoice, Plan, Planned, Selection};
use crate::preflight::{self, Lock};
use crate::rule;

/// Redirects until Ctrl-C or SIGTERM.
///
/// # Errors
///
/// What is wrong with the rules, the host or the kernel. Nothing is left
/// attached.
pub async fn run(cli: &Cli) -> anyhow::Result<()> {
    rule::check(&cli.rules)?;
    let mut netlink = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    snapshot.check_names(&cli.iface)?;
    preflight::check_capabilities()?;
    preflight::check_kernel()?;
    let _lock = Lock::take()?;
    let plan = snapshot.plan(&cli.iface, cli.engine, &Default::default(), &program_name)?;

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let sizes = Sizes { tcp_flows: cli.max_tcp_flows, udp_flows: cli.max_udp_flows };
    let is_logging = log::log_enabled!(target: "portredir_ebpf", log::Level::Debug);
    let log_level = if is_logging { aya_log::Level::Debug as u8 } else { 0 };
    let mut datapath = Datapath::load(&cli.rules, sizes, log_level)?;
    if is_logging {
        tokio::spawn(forward_log(EbpfLogger::init(datapath.ebpf())?));
    }
    let mut host = Host { cli, datapath, attached: BTreeMap::new(), names: BTreeMap::new() };
    let result = host.start(&netlink, &snapshot, plan).await;
    if let Err(error) = result {
        host.stop(&netlink).await;
        return Err(error);
    }

    let mut ticks = tokio::time::interval(cli.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut before = None;
    let result = loop {
        tokio::select! {
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            () = netlink.changed() => {
                if let Err(error) = host.follow(&netlink).await {
                    log::warn!("{error:#}");
                }
            }
            _ = ticks.tick() => match host.print_changes(before.as_ref()) {
                Ok(report) => before = Some(report),
                Err(error) => break Err(error),
            },
        }
    };
    let report = host.report();
    host.stop(&netlink).await;
    result?;
    print_final(cli, &report?)
}

/// The state of a run.
struct Host<'a> {
    cli: &'a Cli,
    datapath: Datapath,
    attached: BTreeMap<u32, InterfaceReport>,
    /// Of all interfaces that ever counted something.
    names: BTreeMap<u32, String>,
}

impl Host<'_> {
    async fn start(
        &mut self,
        netlink: &Netlink,
        snapshot: &Snapshot,
        plan: Plan,
    ) -> anyhow::Result<()> {
        self.datapath.set_local(&snapshot.addrs)?;
        for skipped in &plan.skip {
            eprintln!("{skipped}");
        }
        for planned in plan.attach.values() {
            eprintln!("{planned}");
        }
        if plan.attach.is_empty() && self.cli.iface != Selection::All {
            anyhow::bail!("no interface left to attach to");
        }
        for (index, planned) in plan.attach {
            self.attach(index, &planned)?;
        }
        let rules: Vec<_> = self.cli.rules.iter().map(ToString::to_string).collect();
        eprintln!("redirecting {}; Ctrl-C ends it", rules.join(" "));
        // What changed while we were busy.
        self.follow(netlink).await
    }

    fn attach(&mut self, index: u32, planned: &Planned) -> anyhow::Result<()> {
        let result = self.datapath.attach(planned);
        let (engine, mode) = match result {
            Ok(mode) => (planned.engine, mode),
            Err(error)
                if self.cli.engine == EngineChoice::Auto
                    && planned.engine == Engine::XdpNative =>
            {
                eprintln!("{}: {:#}; using tc", planned.interface.name, anyhow::anyhow!(error));
                let planned = Planned { engine: Engine::Tc, ..planned.clone() };
                (Engine::Tc, self.datapath.attach(&planned)?)
            }
            Err(error) => return Err(error.into()),
        };
        let name = planned.interface.name.clone();
        log::info!("attached to {name} by {mode}");
        self.names.insert(index, name.clone());
        let report = InterfaceReport {
            name,
            ifindex: index,
            engine: engine.name(),
            mode,
            why: planned.why.clone(),
        };
        self.attached.insert(index, report);
        Ok(())
    }

    /// Makes the datapath follow interfaces and addresses as they are now.
    async fn follow(&mut self, netlink: &Netlink) -> anyhow::Result<()> {
        let snapshot = netlink.snapshot().await?;
        self.datapath.set_local(&snapshot.addrs)?;
        let attached = self.datapath.attached();
        let plan =
            snapshot.plan(&self.cli.iface, self.cli.engine, &attached, &program_name)?;
        let gone: Vec<_> =
            attached.iter().copied().filter(|index| !plan.attach.contains_key(index)).collect();
        for index in gone {
            self.detach(netlink, index, snapshot.interfaces.contains_key(&index)).await;
        }
        for (index, planned) in plan.attach {
            let name = &planned.interface.name;
            if let Some(report) = self.attached.get_mut(&index) {
                if report.name != *name {
                    eprintln!("{} is now {name}", report.name);
                    report.name.clone_from(name);
                    self.names.insert(index, name.clone());
                }
                continue;
            }
            eprintln!("{planned}");
            if let Err(error) = self.attach(index, &planned) {
                // It may be gone again already; if not, the others must work.
                log::warn!("{error:#}");
            }
        }
        Ok(())
    }

    async fn detach(&mut self, netlink: &Netlink, index: u32, exists: bool) {
        let Some(report) = self.attached.remove(&index) else {
            return;
        };
        let is_clsact_ours = self.datapath.detach(index, &report.name);
        eprintln!("{} {}", report.name, if exists { "detached" } else { "is gone" });
        if exists && is_clsact_ours && let Err(error) = remove_clsact(netlink, index).await {
            log::warn!("{}: remove the clsact qdisc: {error:#}", report.name);
        }
    }

    async fn stop(&mut self, netlink: &Netlink) {
        for index in self.datapath.attached() {
            self.detach(netlink, index, true).await;
        }
    }

    fn report(&self) -> anyhow::Result<Report> {
        Ok(Report::new(
            &self.cli.rules,
            self.attached.values().cloned().collect(),
            &self.datapath.counters()?,
            &self.datapath.reasons()?,
            &self.names,
        ))
    }

    fn print_changes(&self, before: Option<&Report>) -> anyhow::Result<Report> {
        let report = self.report()?;
        let mut out = std::io::stdout().lock();
        if self.cli.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else {
            for line in report.changes(before) {
                writeln!(out, "{line}")?;
            }
        }
        out.flush().context("print counters")?;
        Ok(report)
    }
}

fn print_final(cli: &Cli, report: &Report) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if cli.json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
    } else {
        for line in report.summary() {
            writeln!(out, "{line}")?;
        }
    }
    out.flush().context("print counters")
}

/// Removes the clsact qdisc, unless somebody has filters on it by now.
async fn remove_clsact(netlink: &Netlink, index: u32) -> anyhow::Result<()> {
    // `TC_H_CLSACT`, as include/uapi/linux/pkt_sched.h has it.
    const CLSACT_PARENT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
    let index = i32::try_from(index)?;
    let handle = netlink.handle();
    let ingress = handle.traffic_filter(index).get().ingress().execute();
    let egress = handle.traffic_filter(index).get().egress().execute();
    let filters = ingress.try_collect::<Vec<_>>().await?.len()
        + egress.try_collect::<Vec<_>>().await?.len();
    if filters > 0 {
        return Ok(());
    }
    let mut request = handle.qdisc().del(index);
    request.message_mut().header.parent = CLSACT_PARENT;
    Ok(request.execute().await?)
}

/// Passes on what the programs log, until the end of the run.
async fn forward_log(mut logger: EbpfLogger<&'static dyn log::Log>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        logger.flush();
    }
}
