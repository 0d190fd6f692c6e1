//! The foreground run: plan, attach, follow the host, count, detach.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use portredir_common::abi::{Counter, CounterKey};
use portredir_common::verdict::Reason;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

use crate::cli::Run;
use crate::counters::{InterfaceReport, Report};
use crate::datapath::{self, Datapath, Sizes, Unregistered};
use crate::facts::{Facts, Loaded};
use crate::interface::{Netlink, Snapshot};
use crate::plan::{Engine, EngineChoice, Plan, Planned};
use crate::preflight::{self, Lock};
use crate::selection::SelectedBy;
use crate::settings::Settings;
use crate::sockets::{self, Kind};

/// Redirects until Ctrl-C or SIGTERM.
///
/// # Errors
///
/// What is wrong with the rules, the host or the kernel. Nothing is left
/// attached.
pub async fn run(cli: &Run) -> anyhow::Result<()> {
    let settings = cli.settings();
    let netlink = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    snapshot.check(&settings)?;
    preflight::check_capabilities()?;
    preflight::check_kernel()?;
    let _lock = Lock::take()?;
    let facts = Facts::read(settings.cgroup.as_deref());
    let plan = snapshot.plan(&settings, &facts, &BTreeMap::new(), &Loaded);

    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let sizes = Sizes {
        tcp_flows: settings.max_tcp_flows,
        udp_flows: settings.max_udp_flows,
    };
    let is_logging = log::log_enabled!(target: "portredir_ebpf", log::Level::Debug);
    let log_level = if is_logging {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    let options = datapath::Options {
        sizes,
        log_level,
        cgroup: facts.cgroup.clone(),
        allow_loopback_target: settings.allow_loopback_target,
        is_everywhere: settings.iface.is_everything() && !settings.no_local,
    };
    let mut datapath = Datapath::load(&settings.rules, options)?;
    if is_logging {
        tokio::spawn(forward_log(EbpfLogger::init_with_logger(
            datapath.ebpf(),
            DecisionLog,
        )?));
    }
    let mut host = Host {
        cli,
        settings,
        facts,
        netlink,
        datapath,
        selected: BTreeMap::new(),
        attached: BTreeMap::new(),
        names: BTreeMap::from([(ELSEWHERE, "elsewhere".to_owned())]),
        gone: BTreeMap::new(),
        said: BTreeSet::new(),
        unregistered: BTreeSet::new(),
    };
    if let Err(error) = host.start(&snapshot, plan).await {
        host.detach_all().await;
        return Err(error);
    }
    let rules: Vec<_> = host
        .settings
        .rules
        .iter()
        .map(ToString::to_string)
        .collect();
    eprintln!("redirecting {}; Ctrl-C ends it", rules.join(" "));

    let mut ticks = tokio::time::interval(cli.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut watch = tokio::time::interval(LISTENERS);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    let result = loop {
        // What changed while we were busy is followed as well.
        tokio::select! {
            _ = hang_up.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            () = host.netlink.changed() => {
                if let Err(error) = host.follow().await {
                    log::warn!("{error:#}");
                }
            }
            _ = watch.tick(), if host.datapath.needs_listeners() => {
                if let Err(error) = host.register() {
                    log::warn!("{error:#}");
                }
            }
            _ = ticks.tick() => match host.print_changes(before.as_ref()) {
                Ok(report) => before = Some(report),
                Err(error) => break Err(error),
            },
        }
    };
    if result.is_ok() {
        tokio::select! {
            _ = hang_up.recv() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            result = host.drain() => if let Err(error) = result {
                log::warn!("{error:#}");
            },
        }
    }
    let report = host.report();
    host.detach_all().await;
    result?;
    print_final(cli, &report?)
}

/// How often to look for servers that did not register by themselves: those
/// outside of the cgroup.
const LISTENERS: Duration = Duration::from_millis(500);

/// The index of no interface: of those that are gone, and of all where the
/// kernel does not tell.
const ELSEWHERE: u32 = 0;

/// The state of a run.
struct Host<'a> {
    cli: &'a Run,
    settings: Settings,
    facts: Facts,
    netlink: Netlink,
    datapath: Datapath,
    /// What is attached, and how it was selected.
    selected: BTreeMap<u32, SelectedBy>,
    attached: BTreeMap<u32, InterfaceReport>,
    /// Of the interfaces that have counters.
    names: BTreeMap<u32, String>,
    /// Counters of interfaces that are gone, by rule.
    gone: BTreeMap<u32, Counter>,
    /// What was last said about interfaces.
    said: BTreeSet<String>,
    /// What was last said about servers.
    unregistered: BTreeSet<String>,
}

impl Host<'_> {
    /// Attaches as planned, or not at all.
    async fn start(&mut self, snapshot: &Snapshot, plan: Plan) -> anyhow::Result<()> {
        self.datapath.set_local(&snapshot.addrs)?;
        eprint!("{plan}");
        self.said = plan.skip.iter().map(ToString::to_string).collect();
        if let Some(error) = plan.refuse.into_iter().next() {
            return Err(error.into());
        }
        if plan.attach.is_empty() && !self.settings.iface.is_open() {
            anyhow::bail!("no interface left to attach to");
        }
        let is_lookup = |planned: &Planned| planned.engine == Engine::Lookup;
        if plan.attach.values().any(is_lookup) {
            // Before the first connection looks for a server.
            self.register()?;
        }
        for planned in plan.attach.values() {
            if let Some(instead) = self.attach(planned).await? {
                eprintln!("{instead}");
            }
        }
        Ok(())
    }

    /// Registers servers that listen and are not known yet.
    fn register(&mut self) -> anyhow::Result<()> {
        let listening = sockets::list(Kind::Listening)?;
        let mut lines = BTreeSet::new();
        for Unregistered { port, errno } in self.datapath.register(&listening)? {
            let why = match errno {
                libc::EOPNOTSUPP => "this kernel keeps MPTCP sockets out of maps".to_owned(),
                errno => std::io::Error::from_raw_os_error(errno).to_string(),
            };
            lines.insert(format!(
                "the server on port {port} cannot be given connections: {why}; use --engine auto"
            ));
        }
        say_new(&mut self.unregistered, lines);
        Ok(())
    }

    /// Waits for the end of the connections whose packets are rewritten.
    async fn drain(&mut self) -> anyhow::Result<()> {
        const POLL: Duration = Duration::from_millis(100);
        self.datapath.drain()?;
        let timeout = self.settings.drain_timeout;
        let end = Instant::now() + timeout;
        let mut is_said = false;
        loop {
            let connections = sockets::list(Kind::Connected)?;
            let count = self.datapath.count_redirected(&connections);
            if count == 0 {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                eprintln!("{count} connections are cut off");
                return Ok(());
            }
            if !is_said {
                eprintln!(
                    "waiting {} s at most for {count} connections to end; Ctrl-C cuts them off",
                    timeout.as_secs_f64()
                );
                is_said = true;
            }
            tokio::time::sleep(POLL.min(left)).await;
        }
    }

    /// Attaches to an interface; returns what was done instead where the plan
    /// could not be carried out and has another way.
    async fn attach(&mut self, planned: &Planned) -> anyhow::Result<Option<Planned>> {
        let mut instead = None;
        let mut result = self.datapath.attach(planned);
        let is_auto = self.settings.engine == EngineChoice::Auto;
        let has_other_way = match planned.engine {
            Engine::Cgroup => true,
            Engine::XdpNative => is_auto,
            _ => false,
        };
        if has_other_way && let Err(error) = result {
            let why = format!("{:#}", anyhow::Error::from(error));
            let planned = instead.insert(planned.by_tc_instead(&self.facts, &why));
            result = self.datapath.attach(planned);
        }
        let planned = instead.as_ref().unwrap_or(planned);
        let (index, name) = (planned.interface.index, &planned.interface.name);
        let mode = match result {
            Ok(mode) => mode,
            Err(error) => {
                self.remove_clsact(index, name).await;
                return Err(error.into());
            }
        };
        log::info!("attached to {name} by {mode}");
        self.names.insert(index, name.clone());
        let report = InterfaceReport {
            name: name.clone(),
            ifindex: index,
            engine: planned.engine.name(),
            mode,
            why: planned.why.clone(),
        };
        self.attached.insert(index, report);
        self.selected.insert(index, planned.selected);
        Ok(instead)
    }

    /// Makes the datapath follow interfaces and addresses as they are now.
    async fn follow(&mut self) -> anyhow::Result<()> {
        for index in self.netlink.take_left() {
            self.detach(index, false).await;
        }
        let snapshot = self.netlink.snapshot().await?;
        self.datapath.set_local(&snapshot.addrs)?;
        for (index, report) in &mut self.attached {
            let now = snapshot.interfaces.get(index).map(|now| &now.name);
            if let Some(name) = now.filter(|name| **name != report.name) {
                eprintln!("{} is now {name}", report.name);
                report.name.clone_from(name);
                self.names.insert(*index, name.clone());
            }
        }
        let plan = snapshot.plan(&self.settings, &self.facts, &self.selected, &Loaded);
        let covered = plan.skip.iter().filter(|skipped| skipped.is_covered);
        let mut lines: BTreeSet<_> = covered
            .map(ToString::to_string)
            .chain(plan.refuse.iter().map(ToString::to_string))
            .collect();
        let attached = self.datapath.attached();
        let is_egress_only = |index| plan.attach.get(index).map(|p| p.is_egress_only);
        // The device below may have come or gone.
        for (index, was_egress_only) in &attached {
            if is_egress_only(index).is_some_and(|now| now != *was_egress_only) {
                self.detach(*index, true).await;
            }
        }
        let attached = self.datapath.attached();
        let gone = attached.keys().filter(|i| !plan.attach.contains_key(i));
        let new = plan
            .attach
            .iter()
            .filter(|(i, _)| !attached.contains_key(i));
        // A bridge may give way to its ports: no reply must leave between.
        let mut refused = Vec::new();
        for (_, planned) in new {
            if planned.engine == Engine::Lookup && !self.datapath.needs_listeners() {
                self.register()?;
            }
            match self.attach(planned).await {
                Ok(instead) => eprintln!("{}", instead.as_ref().unwrap_or(planned)),
                Err(_) => refused.push(planned),
            }
        }
        for &index in gone {
            self.detach(index, snapshot.interfaces.contains_key(&index))
                .await;
        }
        // What has gone may have been in the way, or they are gone themselves;
        // if not, the others must work.
        for planned in refused {
            match self.attach(planned).await {
                Ok(instead) => eprintln!("{}", instead.as_ref().unwrap_or(planned)),
                Err(error) => {
                    lines.insert(format!("{error:#}"));
                }
            }
        }
        say_new(&mut self.said, lines);
        Ok(())
    }

    async fn detach(&mut self, index: u32, exists: bool) {
        let Some(report) = self.attached.remove(&index) else {
            return;
        };
        self.selected.remove(&index);
        self.datapath.detach(index, &report.name);
        if exists {
            self.remove_clsact(index, &report.name).await;
        } else {
            self.datapath.forget_clsact(index);
            self.forget(index);
        }
        eprintln!(
            "{} {}",
            report.name,
            if exists { "detached" } else { "is gone" }
        );
    }

    async fn detach_all(&mut self) {
        for index in self.datapath.attached().into_keys() {
            self.detach(index, true).await;
        }
    }

    /// Removes the clsact qdisc, if it is ours and nobody else has filters on
    /// it by now.
    async fn remove_clsact(&mut self, index: u32, name: &str) {
        if self.datapath.forget_clsact(index)
            && let Err(error) = self.netlink.remove_clsact(index).await
        {
            log::warn!("{name}: {error:#}");
        }
    }

    /// Keeps what an interface that is gone has counted, but not by its name:
    /// a host may see any number of them.
    fn forget(&mut self, index: u32) {
        self.names.remove(&index);
        match self.datapath.take_counters(index) {
            Ok(counters) => {
                for (key, counter) in counters {
                    self.gone.entry(key.rule).or_default().add(&counter);
                }
            }
            Err(error) => log::warn!("counters of an interface that is gone: {error}"),
        }
    }

    fn report(&self) -> anyhow::Result<Report> {
        let mut counters = self.datapath.counters()?;
        counters.extend(self.gone.iter().map(|(&rule, &counter)| {
            let ifindex = ELSEWHERE;
            (CounterKey { ifindex, rule }, counter)
        }));
        Ok(Report::new(
            &self.settings.rules,
            self.attached.values().cloned().collect(),
            &counters,
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

/// Says what was not said before, and no longer remembers the rest.
fn say_new(said: &mut BTreeSet<String>, lines: BTreeSet<String>) {
    for line in lines.difference(said) {
        eprintln!("{line}");
    }
    *said = lines;
}

fn print_final(cli: &Run, report: &Report) -> anyhow::Result<()> {
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

/// Passes on what the programs log, until the end of the run.
async fn forward_log(mut logger: EbpfLogger<DecisionLog>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        logger.flush();
    }
}

/// Puts words to the decisions of the programs: the index of a
/// [`Reason`], then the packet.
struct DecisionLog;

impl Log for DecisionLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        log::logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let (index, packet) = text.split_once(' ').unwrap_or_default();
        let reason = index
            .parse()
            .ok()
            .and_then(|index: usize| Reason::ALL.get(index));
        let word = reason.map_or(index, |reason| reason.label());
        log::logger().log(
            &Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{word}: {packet}"))
                .build(),
        );
    }

    fn flush(&self) {}
}
