//! One host that is redirected: attach, follow its interfaces and addresses,
//! change its rules, detach. In the foreground it lives in this process alone;
//! with pins it outlives it.

pub mod event_loop;
pub mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aya_log::EbpfLogger;
use log::{Log, Metadata};
use portredir_common::verdict::Reason;
use tokio::time::Instant;

use crate::config::engine::{Engine, EngineChoice};
use crate::config::settings::Settings;
use crate::controller::transaction::LifecycleError;
use crate::host::features::{Facts, Loaded};
use crate::host::netlink::Netlink;
use crate::host::snapshot::Snapshot;
use crate::loader::{self, Datapath, Sizes, Unregistered};
use crate::observe::report::{InterfaceReport, Report};
use crate::plan::{Plan, Planned};
use crate::ruleset::compile::Table;
use crate::state::{self, Found, Record, State};
use crate::sys::bpffs::PinDir;
use crate::sys::ethtool;
use crate::sys::mmap;
use crate::sys::sock_diag::{self, Kind};

/// A host that is, or will be, redirected.
pub struct Host {
    /// What is live.
    pub state: State,
    /// Of this kernel and host.
    pub facts: Facts,
    /// Tells of interfaces and addresses.
    pub netlink: Netlink,
    datapath: Datapath,
    table: Table,
    /// Where it outlives the process.
    pins: Option<PinDir>,
    records: BTreeMap<u32, Record>,
    /// Of interfaces at which somebody was killed while he attached or detached.
    unfinished: Vec<Record>,
    /// What was last said about interfaces.
    said: BTreeSet<String>,
    /// What was last said about servers.
    unregistered: BTreeSet<String>,
}

impl Host {
    /// Creates the maps, or opens those that are pinned; attaches nothing. Of rules
    /// it knows none until [`Self::reread`] or [`Self::commit`]: to compile them
    /// takes its time.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn open(
        settings: &Settings,
        state: State,
        netlink: Netlink,
        pins: Option<PinDir>,
        is_logging: bool,
    ) -> anyhow::Result<Self> {
        let facts = Facts::read(settings.cgroup.as_deref());
        let log_level = if is_logging {
            aya_log::Level::Debug as u8
        } else {
            0
        };
        let options = loader::Options {
            sizes: Sizes {
                tcp_flows: settings.max_tcp_flows,
                udp_flows: settings.max_udp_flows,
            },
            log_level,
            cgroup: facts.cgroup.clone(),
            allow_loopback_target: settings.allow_loopback_target,
            is_everywhere: settings.iface.is_everything() && !settings.no_local,
        };
        let mut datapath = Datapath::load(options, pins.as_ref())?;
        if is_logging {
            tokio::spawn(forward_log(EbpfLogger::init_with_logger(
                datapath.object()?,
                DecisionLog,
            )?));
        }
        let mut host = Self {
            table: Table::default(),
            state,
            facts,
            netlink,
            datapath,
            pins,
            records: BTreeMap::new(),
            unfinished: Vec::new(),
            said: BTreeSet::new(),
            unregistered: BTreeSet::new(),
        };
        host.adopt();
        Ok(host)
    }

    /// Takes over what another process has left attached.
    fn adopt(&mut self) {
        let Some(pins) = &self.pins else {
            return;
        };
        self.datapath.forget();
        self.records.clear();
        self.unfinished.clear();
        for record in state::records(pins) {
            let index = record.report.ifindex;
            if record.mode.programs.is_empty() {
                self.unfinished.push(record);
            } else {
                self.datapath.adopt(index, record.engine, &record.mode);
                self.records.insert(index, record);
            }
        }
    }

    /// Puts back what somebody has changed who was killed before he could attach
    /// or detach.
    async fn clear_unfinished(&mut self, snapshot: &Snapshot) {
        for record in std::mem::take(&mut self.unfinished) {
            let index = record.report.ifindex;
            self.datapath.clear(record.engine, index);
            if let Some(interface) = snapshot.interfaces.get(&index) {
                Datapath::sweep(interface);
                put_back(&self.netlink, &record).await;
            }
            self.datapath.remove_record(index);
        }
    }

    /// Whether servers have to be registered.
    #[must_use]
    pub const fn needs_listeners(&self) -> bool {
        self.datapath.needs_listeners()
    }

    /// Plans for the interfaces as they are.
    #[must_use]
    pub fn plan(&self, snapshot: &Snapshot, settings: &Settings) -> Plan {
        let attached = self.records.iter();
        let attached = attached.map(|(&index, record)| (index, record.selected));
        snapshot.plan(settings, &self.facts, &attached.collect(), &Loaded)
    }

    /// Attaches as planned, or not at all.
    ///
    /// # Errors
    ///
    /// Where the plan is impossible; what was attached before is left as it was.
    pub async fn start(&mut self, snapshot: &Snapshot, plan: &Plan) -> anyhow::Result<()> {
        self.clear_unfinished(snapshot).await;
        self.datapath.set_local(&snapshot.addrs)?;
        self.said = plan.skip.iter().map(ToString::to_string).collect();
        let is_lookup = |planned: &Planned| planned.engine == Engine::Lookup;
        if plan.attach.values().any(is_lookup) {
            // Before the first connection looks for a server.
            self.register()?;
        }
        let choice = plan.choice;
        let mut attached = Vec::new();
        for (&index, planned) in &plan.attach {
            if self.is_attached_as(planned) {
                continue;
            }
            self.detach(index, true).await;
            match self.attach(planned, choice).await {
                Ok(instead) => {
                    attached.push(index);
                    if let Some(instead) = instead {
                        eprintln!("{instead}");
                    }
                }
                Err(error) => {
                    for index in attached {
                        self.detach(index, true).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Puts the programs of this process in the place of those that another one
    /// has left attached. What can no longer be replaced is detached, for the
    /// plan to attach it again.
    pub async fn upgrade(&mut self) {
        let records: Vec<_> = self.records.values().cloned().collect();
        for record in records {
            let name = &record.report.name;
            if let Err(error) = self.datapath.replace(name, &record.mode) {
                log::debug!("{:#}", anyhow::Error::from(error));
                self.detach(record.report.ifindex, true).await;
            }
        }
    }

    /// Makes rules, and what else can change without attaching anew, valid: all
    /// of it between two packets. Flows that have begun keep their targets.
    ///
    /// # Errors
    ///
    /// More than the tables hold, or what the kernel refuses; then the old rules
    /// go on.
    pub fn commit(&mut self, snapshot: &Snapshot, state: State) -> anyhow::Result<()> {
        let table = compile(&state)?;
        let before = std::mem::replace(&mut self.table, table);
        let result = self.try_commit(snapshot, &state);
        if let Err(error) = result {
            self.table = before;
            return Err(error);
        }
        self.state = state;
        mmap::give_back();
        if self.needs_listeners() {
            // Those that began to listen before the switch.
            self.register()?;
        }
        Ok(())
    }

    fn try_commit(&mut self, snapshot: &Snapshot, state: &State) -> anyhow::Result<()> {
        if self.needs_listeners() {
            self.register()?;
        }
        // Flows of rules that are gone may go on to count; nobody reads that.
        let before = self.state.ids.iter().copied().collect();
        self.datapath.keep_counters(&before)?;
        let generation = self.datapath.fill(&self.table)?;
        self.datapath
            .set_on(generation, &on_masks(&self.table, snapshot))?;
        if self.pins.is_some() {
            self.datapath.set_state(generation, state)?;
        }
        self.datapath.switch_to(generation);
        Ok(())
    }

    /// What follows the present state with other settings.
    ///
    /// # Errors
    ///
    /// When the connections of this host cannot be listed.
    pub fn next(&self, settings: Settings) -> anyhow::Result<State> {
        // To ask for all flows takes its time.
        let live = if self.state.history.is_empty() {
            BTreeSet::new()
        } else {
            self.datapath.live(&sock_diag::list(Kind::Connected)?)?
        };
        let history = self.state.history.after(
            &self.state.settings.rules,
            &settings.rules,
            |protocol, dialled, target| live.contains(&(protocol, dialled, target)),
        );
        Ok(self.state.next(settings, history))
    }

    /// Reads what another process has committed.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn reread(&mut self) -> anyhow::Result<()> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        let Found::Live(state) = state::find(pins)? else {
            return Err(LifecycleError::NotRunning.into());
        };
        self.table = compile(&state)?;
        self.state = *state;
        mmap::give_back();
        self.adopt();
        Ok(())
    }

    /// Registers servers that listen and are not known yet.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    pub fn register(&mut self) -> anyhow::Result<()> {
        let listening = sock_diag::list(Kind::Listening)?;
        let mut lines = BTreeSet::new();
        let refused = self.datapath.register(&self.table, &listening)?;
        for Unregistered { port, errno } in refused {
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

    /// Leaves the flows there are as they are and redirects no others, then waits
    /// for the end of the connections whose packets are rewritten.
    ///
    /// # Errors
    ///
    /// When connections cannot be listed.
    pub async fn drain(&mut self, timeout: Duration) -> anyhow::Result<()> {
        const POLL: Duration = Duration::from_millis(100);
        let snapshot = self.netlink.snapshot().await?;
        let settings = Settings {
            rules: Vec::new(),
            ..self.state.settings.clone()
        };
        let state = State {
            is_ending: true,
            ..self.next(settings)?
        };
        self.commit(&snapshot, state)?;
        let end = Instant::now() + timeout;
        let mut is_said = false;
        loop {
            let connections = sock_diag::list(Kind::Connected)?;
            let count = self.datapath.count_redirected(&self.table, &connections)?;
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
    async fn attach(
        &mut self,
        planned: &Planned,
        choice: EngineChoice,
    ) -> anyhow::Result<Option<Planned>> {
        let mut instead = None;
        let mut result = self.try_attach(planned).await;
        let is_auto = choice == EngineChoice::Auto;
        let has_other_way = match planned.engine {
            Engine::Cgroup => true,
            Engine::XdpNative => is_auto,
            _ => false,
        };
        if has_other_way && let Err(error) = result {
            let why = format!("{error:#}");
            let planned = instead.insert(planned.by_tc_instead(&self.facts, &why));
            result = self.try_attach(planned).await;
        }
        result.map(|()| instead)
    }

    /// Attaches to an interface as planned. What is to be put back is written
    /// down first.
    async fn try_attach(&mut self, planned: &Planned) -> anyhow::Result<()> {
        let interface = &planned.interface;
        let (index, name) = (interface.index, &interface.name);
        let may_use_clsact = self.facts.tcx != Some(true) || planned.engine == Engine::TcClsact;
        let was_ours = Datapath::sweep(interface);
        let is_clsact_ours =
            was_ours || (may_use_clsact && !self.netlink.has_clsact(index).await?);
        let restore = match planned.engine {
            Engine::XdpGeneric => {
                let on = ethtool::features_on(name).into_iter();
                on.map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        let mut record = Record {
            report: InterfaceReport {
                name: name.clone(),
                ifindex: index,
                engine: planned.engine.name().to_owned(),
                mode: String::new(),
                why: planned.why.clone(),
            },
            selected: planned.selected,
            engine: planned.engine,
            is_egress_only: planned.is_egress_only,
            mode: loader::Mode::default(),
            restore,
            is_clsact_ours,
        };
        self.write_down(&record)?;
        match self.datapath.attach(planned) {
            Ok(mode) => {
                log::info!("attached to {name} by {}", mode.name);
                record.report.mode.clone_from(&mode.name);
                record.mode = mode;
                let written = self.write_down(&record);
                self.records.insert(index, record);
                if written.is_err() {
                    self.detach(index, true).await;
                }
                written
            }
            Err(error) => {
                put_back(&self.netlink, &record).await;
                self.datapath.remove_record(index);
                Err(error.into())
            }
        }
    }

    fn write_down(&mut self, record: &Record) -> anyhow::Result<()> {
        if self.pins.is_some() {
            self.datapath.set_record(record)?;
        }
        Ok(())
    }

    /// Makes the datapath follow interfaces and addresses as they are now.
    ///
    /// # Errors
    ///
    /// When they cannot be listed. What fails with a single interface is said.
    pub async fn follow(&mut self) -> anyhow::Result<()> {
        for index in self.netlink.take_left() {
            self.detach(index, false).await;
        }
        let snapshot = self.netlink.snapshot().await?;
        self.clear_unfinished(&snapshot).await;
        self.datapath.set_local(&snapshot.addrs)?;
        let generation = self.datapath.generation();
        self.datapath
            .set_on(generation, &on_masks(&self.table, &snapshot))?;
        self.rename(&snapshot)?;
        let settings = self.state.settings.clone();
        let plan = self.plan(&snapshot, &settings);
        let choice = plan.choice;
        let covered = plan.skip.iter().filter(|skipped| skipped.is_covered);
        let mut lines: BTreeSet<_> = covered
            .map(ToString::to_string)
            .chain(plan.refuse.iter().map(ToString::to_string))
            .collect();
        let is_egress_only = |index| plan.attach.get(index).map(|p| p.is_egress_only);
        // The device below may have come or gone.
        let turned: Vec<_> = self
            .records
            .iter()
            .filter(|(index, record)| {
                is_egress_only(index).is_some_and(|now| now != record.is_egress_only)
            })
            .map(|(&index, _)| index)
            .collect();
        for index in turned {
            self.detach(index, true).await;
        }
        let attached: Vec<_> = self.records.keys().copied().collect();
        let new = plan
            .attach
            .iter()
            .filter(|(index, _)| !attached.contains(index));
        // A bridge may give way to its ports: no reply must leave between.
        let mut refused = Vec::new();
        for (_, planned) in new {
            if planned.engine == Engine::Lookup && !self.needs_listeners() {
                self.register()?;
            }
            match self.attach(planned, choice).await {
                Ok(instead) => eprintln!("{}", instead.as_ref().unwrap_or(planned)),
                Err(_) => refused.push(planned),
            }
        }
        for index in attached {
            if !plan.attach.contains_key(&index) {
                self.detach(index, snapshot.interfaces.contains_key(&index))
                    .await;
            }
        }
        // What has gone may have been in the way, or they are gone themselves;
        // if not, the others must work.
        for planned in refused {
            match self.attach(planned, choice).await {
                Ok(instead) => eprintln!("{}", instead.as_ref().unwrap_or(planned)),
                Err(error) => {
                    lines.insert(format!("{error:#}"));
                }
            }
        }
        say_new(&mut self.said, lines);
        Ok(())
    }

    fn rename(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let mut renamed = Vec::new();
        for (index, record) in &mut self.records {
            let now = snapshot.interfaces.get(index).map(|now| &now.name);
            if let Some(name) = now.filter(|name| **name != record.report.name) {
                eprintln!("{} is now {name}", record.report.name);
                record.report.name.clone_from(name);
                renamed.push(record.clone());
            }
        }
        for record in renamed {
            self.write_down(&record)?;
        }
        Ok(())
    }

    /// Whether an interface is attached, and by the engine that is planned.
    fn is_attached_as(&self, planned: &Planned) -> bool {
        self.records
            .get(&planned.interface.index)
            .is_some_and(|record| {
                record.engine == planned.engine && record.is_egress_only == planned.is_egress_only
            })
    }

    async fn detach(&mut self, index: u32, exists: bool) {
        let Some(mut record) = self.records.remove(&index) else {
            return;
        };
        // From here on it is unfinished business.
        record.mode.programs.clear();
        if let Err(error) = self.write_down(&record) {
            log::warn!("{error:#}");
        }
        let name = &record.report.name;
        self.datapath.detach(index, name);
        if exists {
            put_back(&self.netlink, &record).await;
        } else if let Err(error) = self.datapath.forget_interface(index) {
            log::warn!("counters of an interface that is gone: {error}");
        }
        self.datapath.remove_record(index);
        eprintln!("{name} {}", if exists { "detached" } else { "is gone" });
    }

    /// Detaches from every interface.
    pub async fn detach_all(&mut self) {
        let attached: Vec<_> = self.records.keys().copied().collect();
        for index in attached {
            self.detach(index, true).await;
        }
    }

    /// All counters.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn report(&self) -> anyhow::Result<Report> {
        self.report_of(&self.state)
    }

    /// All counters of the rules of a state.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn report_of(&self, state: &State) -> anyhow::Result<Report> {
        let records = self.records.values();
        Ok(Report::new(
            &state.rules(),
            records.map(|record| record.report.clone()).collect(),
            &self.datapath.counters()?,
            &self.datapath.reasons()?,
        ))
    }
}

/// Puts settings of an interface back, once nothing is attached.
pub async fn put_back(netlink: &Netlink, record: &Record) {
    let InterfaceReport { name, ifindex, .. } = &record.report;
    for feature in &record.restore {
        if let Err(error) = ethtool::set_feature(name, feature, true) {
            log::warn!("{name}: switch {feature} on again: {error}");
        }
    }
    if record.is_clsact_ours
        && let Err(error) = netlink.remove_clsact(*ifindex).await
    {
        // It may be gone with its interface.
        log::debug!("{name}: {error:#}");
    }
}

/// The rules of a state, as the maps have them.
///
/// # Errors
///
/// More than the maps hold.
pub fn compile(state: &State) -> anyhow::Result<Table> {
    let Settings {
        hide_target,
        if_listening,
        ..
    } = state.settings;
    Ok(Table::compile(
        &state.rules(),
        &state.history,
        hide_target,
        if_listening,
    )?)
}

/// Which of the lists of interfaces in rules an interface is in.
///
/// What comes in by a port of a bridge, a bond or a VRF comes in by that too,
/// wherever it is met.
fn on_masks(table: &Table, snapshot: &Snapshot) -> BTreeMap<u32, u64> {
    let matches = |list: &[String], name: &str| {
        list.iter()
            .any(|text| glob::Pattern::new(text).is_ok_and(|glob| glob.matches(name)))
    };
    let lists = table.on_lists();
    let masks = snapshot.interfaces.values().map(|interface| {
        let master = interface.master.and_then(|i| snapshot.interfaces.get(&i));
        let names = [Some(interface), master];
        let names: Vec<_> = names.into_iter().flatten().map(|i| &i.name).collect();
        let mask = lists.iter().zip(1..).fold(0, |mask, (list, bit)| {
            let is_in = names.iter().any(|name| matches(list, name));
            mask | u64::from(is_in) << bit
        });
        (interface.index, mask)
    });
    masks.filter(|(_, mask)| *mask != 0).collect()
}

/// Says what was not said before, and no longer remembers the rest.
fn say_new(said: &mut BTreeSet<String>, lines: BTreeSet<String>) {
    for line in lines.difference(said) {
        eprintln!("{line}");
    }
    *said = lines;
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

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let (index, packet) = text.split_once(' ').unwrap_or_default();
        let reason = index
            .parse()
            .ok()
            .and_then(|index: usize| Reason::ALL.get(index));
        let word = reason.map_or(index, |reason| reason.label());
        log::logger().log(
            &log::Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{word}: {packet}"))
                .build(),
        );
    }

    fn flush(&self) {}
}
