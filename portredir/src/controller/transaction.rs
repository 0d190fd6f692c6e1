//! The commands whose work outlives them.
//!
//! Every change is made under the lock of the network namespace, and becomes
//! valid in one step. Whoever is killed before that step has changed nothing;
//! what he left lying about is cleared by the next.

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use thiserror::Error;

use crate::command::run::{answer, is_logging};
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::controller::{self, Host};
use crate::host::netlink::Netlink;
use crate::host::preflight;
use crate::host::snapshot::Snapshot;
use crate::ipc::client::{self, Answer, Question, Request, Role, Who};
use crate::loader::Datapath;
use crate::plan::lockout;
use crate::rule::Rule;
use crate::state::{self, Found, Pending, Record, State};
use crate::sys::bpffs::PinDir;
use crate::sys::lock::Lock;
use crate::sys::netns::netns_cookie;

/// Why a command cannot do its work.
#[derive(Debug, Error)]
pub enum LifecycleError {
    /// There is nothing to read or change.
    #[error(
        "nothing is running in this network namespace; to begin: portredir up --iface all 80:8080"
    )]
    NotRunning,
    /// There is nothing but flows that end.
    #[error("what ran is being taken down; if nobody is at it: portredir down")]
    Ending,
    /// A run in the foreground cannot be changed.
    #[error(
        "process {0} redirects in the foreground, and its rules cannot be changed; end it by Ctrl-C \
         or `portredir down`, then use `portredir up`"
    )]
    Foreground(u32),
    /// A run in the foreground would redirect a second time.
    #[error(
        "what `portredir up` left is attached here; change it by add, rm, apply or up, or end it: \
         portredir down"
    )]
    Attached,
    /// Options that only `up` can change.
    #[error("`{0}` cannot be changed without attaching anew; use: portredir up --config PATH")]
    NeedsUp(&'static str),
    /// There is no change to confirm.
    #[error("no change waits to be confirmed")]
    NothingPending,
    /// Another change waits to be confirmed.
    #[error(
        "a change waits to be confirmed: type `portredir confirm` to keep it, or wait {0} s for it \
         to be taken back"
    )]
    Pending(u64),
}

/// What a change works on, with the lock held.
struct Session {
    _lock: Lock,
    pins: PinDir,
    netlink: Netlink,
    snapshot: Snapshot,
}

impl Session {
    /// Takes the lock, and ends what somebody who was killed had begun.
    async fn begin() -> anyhow::Result<(Self, Option<State>)> {
        preflight::check_capabilities()?;
        refuse_foreground()?;
        let lock = match Lock::wait().await {
            Ok(lock) => lock,
            Err(error) => {
                // It may have come meanwhile.
                refuse_foreground()?;
                return Err(error.into());
            }
        };
        let netlink = Netlink::open()?;
        let snapshot = netlink.snapshot().await?;
        let session = Self {
            _lock: lock,
            pins: PinDir::new(netns_cookie().context("the cookie of the network namespace")?),
            netlink,
            snapshot,
        };
        let state = match state::find(&session.pins)? {
            Found::Nothing => None,
            Found::Live(state) if !state.is_ending => Some(*state),
            Found::Live(_) => {
                eprintln!("a `portredir down` was interrupted; it is finished now");
                session.wipe().await?;
                None
            }
            Found::Unfinished => {
                eprintln!("a `portredir up` was interrupted; what it left is removed now");
                session.wipe().await?;
                None
            }
        };
        Ok((session, state))
    }

    /// As [`Self::begin`], for what changes something that is there.
    async fn of_running() -> anyhow::Result<(Self, State)> {
        let (session, state) = Self::begin().await?;
        Ok((session, state.ok_or(LifecycleError::NotRunning)?))
    }

    async fn wipe(&self) -> anyhow::Result<()> {
        wipe(&self.pins, &self.netlink, &self.snapshot).await
    }

    fn host(self, settings: &Settings, state: State) -> anyhow::Result<(Host, Snapshot, Lock)> {
        let host = Host::open(settings, state, self.netlink, Some(self.pins), is_logging())?;
        Ok((host, self.snapshot, self._lock))
    }
}

/// Detaches everything and puts back what attaching changed, then removes maps
/// and state. Whoever is killed in between can do it again.
///
/// # Errors
///
/// What cannot be removed.
pub async fn wipe(pins: &PinDir, netlink: &Netlink, snapshot: &Snapshot) -> anyhow::Result<()> {
    let records = state::records(pins);
    pins.remove_links()?;
    for interface in snapshot.interfaces.values() {
        let had_filters = Datapath::sweep(interface);
        let is_known = |record: &Record| record.report.ifindex == interface.index;
        if had_filters && !records.iter().any(is_known) {
            // Whose the qdisc is, is not known any more; who has no filters in it
            // does not miss it.
            let _ = netlink.remove_clsact(interface.index).await;
        }
    }
    for record in &records {
        controller::put_back(netlink, record).await;
    }
    Ok(pins.remove()?)
}

/// The process that redirects in the foreground. One that does not answer is
/// found by its lock.
fn foreground() -> Option<Who> {
    let who = client::ask(Request::Who).ok()??;
    (who.role == Role::Foreground).then_some(who)
}

fn refuse_foreground() -> Result<(), LifecycleError> {
    foreground().map_or(Ok(()), |who| Err(LifecycleError::Foreground(who.pid)))
}

fn refuse_lock_out(rules: &[Rule], settings: &Settings, care: ChangeOptions) -> anyhow::Result<()> {
    if !care.force {
        lockout::check(
            rules,
            settings.hide_target,
            lockout::ssh_connection().as_ref(),
        )?;
    }
    Ok(())
}

fn refuse_pending(state: &State) -> anyhow::Result<()> {
    match state.confirm_within() {
        Some(left) => Err(LifecycleError::Pending(left.as_secs()).into()),
        None => Ok(()),
    }
}

/// `portredir up`: leaves the datapath attached. What runs already is changed to
/// what is wanted, and its programs are replaced by those of this version.
///
/// Returns what follows interfaces and addresses, for who wants to do that.
///
/// # Errors
///
/// What is wrong with the settings, the host or the kernel. What ran goes on.
pub async fn up(settings: Settings, care: ChangeOptions) -> anyhow::Result<Option<Host>> {
    let (session, state) = Session::begin().await?;
    session.snapshot.check(&settings)?;
    refuse_lock_out(&settings.rules, &settings, care)?;
    preflight::check_kernel()?;
    let before = state.as_ref().map(|state| state.settings.clone());
    if let Some(state) = &state {
        refuse_pending(state)?;
    }
    if care.dry_run {
        let facts = crate::host::features::Facts::read(settings.cgroup.as_deref());
        let plan = session.snapshot.plan(
            &settings,
            &facts,
            &std::collections::BTreeMap::new(),
            &crate::host::features::Loaded,
        );
        eprint!("{plan}");
        plan.check()?;
        print_diff(before.as_ref(), &settings)?;
        return Ok(None);
    }
    let is_new = state.is_none();
    if is_new {
        session.pins.create()?;
    }
    let pins = session.pins.clone();
    let state = state.unwrap_or_else(|| State::empty(settings.clone()));
    let (mut host, snapshot, lock) = session.host(&settings, state)?;
    let result = bring_up(&mut host, &snapshot, &settings, before.as_ref(), care).await;
    if let Err(error) = result {
        if is_new {
            wipe(&pins, &host.netlink, &snapshot).await?;
        }
        return Err(error);
    }
    print_diff(before.as_ref(), &settings)?;
    drop(lock);
    Ok(Some(host))
}

async fn bring_up(
    host: &mut Host,
    snapshot: &Snapshot,
    settings: &Settings,
    before: Option<&Settings>,
    care: ChangeOptions,
) -> anyhow::Result<()> {
    let plan = host.plan(snapshot, settings);
    eprint!("{plan}");
    plan.check()?;
    if plan.attach.is_empty() && !settings.iface.is_open() {
        anyhow::bail!("no interface left to attach to");
    }
    if before.is_some() {
        // What is attached anew redirects by the old rules until the switch.
        host.reread()?;
    }
    host.upgrade().await;
    host.start(snapshot, &plan).await?;
    let mut state = host.next(settings.clone())?;
    state.pending = pending(before, care);
    // If there is one already; it is replaced, or waited for, by `start_follower`.
    let _told = tell_follower();
    host.commit(snapshot, state)?;
    // What is no longer wanted goes last.
    host.follow().await
}

fn pending(before: Option<&Settings>, care: ChangeOptions) -> Option<Pending> {
    care.confirm.map(|within| Pending {
        deadline_ms: state::now_ms() + u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        before: before.cloned(),
    })
}

/// What `add`, `rm` and `apply` have in common: another list of rules, and what
/// else can change without attaching anew.
///
/// # Errors
///
/// What is wrong with the new settings. The old ones go on.
pub async fn change(
    care: ChangeOptions,
    change: impl FnOnce(&Settings) -> anyhow::Result<Settings>,
) -> anyhow::Result<()> {
    let (session, state) = Session::of_running().await?;
    refuse_pending(&state)?;
    let before = state.settings.clone();
    let after = change(&before)?;
    if let Some(option) = before.differs_where_attached(&after) {
        return Err(LifecycleError::NeedsUp(option).into());
    }
    session.snapshot.check(&after)?;
    let new: Vec<_> = missing_in(&before.rules, &after.rules).cloned().collect();
    if after.hide_target && !before.hide_target {
        refuse_lock_out(&after.rules, &after, care)?;
    }
    refuse_lock_out(&new, &after, care)?;
    if before == after {
        eprintln!("nothing to change");
        return Ok(());
    }
    if !care.dry_run {
        let (mut host, snapshot, lock) = session.host(&before, state)?;
        let mut state = host.next(after.clone())?;
        state.pending = pending(Some(&before), care);
        commit(&mut host, &snapshot, state, lock)?;
    }
    print_diff(Some(&before), &after)?;
    if care.confirm.is_some() && !care.dry_run {
        eprintln!("type `portredir confirm` to keep this, else it is taken back");
    }
    Ok(())
}

/// `portredir confirm`.
///
/// # Errors
///
/// [`LifecycleError::NothingPending`].
pub async fn confirm() -> anyhow::Result<()> {
    let (session, state) = Session::of_running().await?;
    if state.pending.is_none() {
        return Err(LifecycleError::NothingPending.into());
    }
    let (mut host, snapshot, lock) = session.host(&state.settings.clone(), state)?;
    let state = State {
        pending: None,
        ..host.state.clone()
    };
    commit(&mut host, &snapshot, state, lock)?;
    eprintln!("confirmed");
    Ok(())
}

/// Makes a state valid, and waits until the one who follows reads it.
fn commit(host: &mut Host, snapshot: &Snapshot, state: State, lock: Lock) -> anyhow::Result<()> {
    let told = tell_follower();
    host.commit(snapshot, state)?;
    drop(lock);
    told.wait();
    Ok(())
}

/// A follower that has been told to read the state again, which it does when
/// nobody holds the lock any more. It is told before something changes: who is
/// killed right after the change must not leave a follower that does not know.
struct Told(io::Result<Option<Question>>);

fn tell_follower() -> Told {
    Told(client::send(Request::Changed))
}

impl Told {
    /// Waits until it answers, which it may only do without the lock.
    fn wait(self) {
        let answer = self
            .0
            .and_then(|asked| asked.map_or(Ok(()), Question::wait));
        if let Err(error) = answer {
            log::warn!("the process that follows interfaces does not answer: {error}");
        }
    }
}

/// `portredir down`: drains, detaches and puts everything back, also a run in the
/// foreground.
///
/// # Errors
///
/// What the kernel refuses.
pub async fn down(timeout: Option<Duration>, dry_run: bool) -> anyhow::Result<()> {
    preflight::check_capabilities()?;
    if let Some(Who { pid, .. }) = foreground() {
        if dry_run {
            eprintln!("would end process {pid}");
            return Ok(());
        }
        return end_foreground(pid);
    }
    let (session, state) = Session::begin().await?;
    let Some(state) = state else {
        eprintln!("nothing is running");
        return Ok(());
    };
    if dry_run {
        return print_diff(
            Some(&state.settings),
            &State::empty(Settings::default()).settings,
        );
    }
    stop_follower(false);
    let settings = state.settings.clone();
    let pins = session.pins.clone();
    let (mut host, snapshot, _lock) = session.host(&settings, state)?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        result = host.drain(timeout.unwrap_or(settings.drain_timeout)) => result?,
    }
    wipe(&pins, &host.netlink, &snapshot).await?;
    print_diff(Some(&settings), &State::empty(Settings::default()).settings)
}

/// `portredir down --force`: whatever state anything is in.
///
/// # Errors
///
/// What the kernel refuses.
pub async fn down_by_force() -> anyhow::Result<()> {
    preflight::check_capabilities()?;
    stop_follower(true);
    let _lock = Lock::wait()
        .await
        .inspect_err(|error| eprintln!("{error}; going on"));
    let netlink = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    wipe(
        &PinDir::new(netns_cookie().context("the cookie of the network namespace")?),
        &netlink,
        &snapshot,
    )
    .await?;
    eprintln!("everything is detached");
    Ok(())
}

fn end_foreground(pid: u32) -> anyhow::Result<()> {
    let drain_timeout =
        client::status()?.map_or(Duration::ZERO, |answer| answer.settings.drain_timeout);
    client::ask(Request::Stop)?;
    if !client::is_there_within(false, drain_timeout + LONGEST) {
        anyhow::bail!("process {pid} has not ended; use --force");
    }
    eprintln!("process {pid} has ended");
    Ok(())
}

/// How long a process may take to begin or end.
const LONGEST: Duration = Duration::from_secs(5);

/// Ends the process that answers commands; with force also one that no longer
/// does.
pub fn stop_follower(by_force: bool) {
    let Ok(Some(pid)) = client::pid() else {
        return;
    };
    let asked = client::ask(Request::Stop);
    if let Err(error) = &asked {
        log::warn!("process {pid} does not answer: {error}");
    }
    if !client::is_there_within(false, LONGEST) && by_force {
        eprintln!("process {pid} is killed");
        let pid = nix::unistd::Pid::from_raw(pid);
        if let Err(errno) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            log::warn!("kill {pid}: {errno}");
        }
        let _ = client::is_there_within(false, LONGEST);
    }
}

/// Has a process of its own follow interfaces and addresses; one that does so by
/// another version ends.
///
/// # Errors
///
/// When it cannot be started.
pub fn start_follower() -> anyhow::Result<()> {
    if let Ok(Some(pid)) = client::pid() {
        if is_this_program(pid) {
            tell_follower().wait();
            return Ok(());
        }
        stop_follower(true);
    }
    use std::os::unix::process::CommandExt as _;
    let program = std::env::current_exe().context("find this program")?;
    Command::new(program)
        .arg("follow")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Ctrl-C is for the command, not for what it leaves behind.
        .process_group(0)
        .spawn()
        .context("start the process that follows interfaces")?;
    if !client::is_there_within(true, LONGEST) {
        eprintln!("the process that follows interfaces is slow to start; see: portredir status");
    }
    Ok(())
}

fn is_this_program(pid: i32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let file = |path: &str| {
        std::fs::metadata(path)
            .ok()
            .map(|file| (file.dev(), file.ino()))
    };
    let own = file("/proc/self/exe");
    own.is_some() && own == file(&format!("/proc/{pid}/exe"))
}

/// What there is: from the process that answers, else from the pins.
///
/// # Errors
///
/// [`LifecycleError::NotRunning`]; or this user may not know.
pub async fn read() -> anyhow::Result<Answer> {
    match client::status() {
        Ok(Some(answer)) => return Ok(answer),
        Ok(None) => {}
        // Root can still look for himself.
        Err(error) => log::debug!("{error}"),
    }
    let pins = PinDir::new(netns_cookie().context("the cookie of the network namespace")?);
    match state::find(&pins)? {
        Found::Live(state) if state.is_ending => Err(LifecycleError::Ending.into()),
        Found::Live(state) => {
            let netlink = Netlink::open()?;
            let settings = state.settings.clone();
            let host = Host::open(&settings, *state, netlink, Some(pins), false)?;
            answer(&host, None)
        }
        Found::Nothing | Found::Unfinished => Err(LifecycleError::NotRunning.into()),
    }
}

/// Those of `rules` that are not among others.
fn missing_in<'a>(others: &'a [Rule], rules: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
    let others: HashSet<_> = others.iter().collect();
    rules.iter().filter(move |rule| !others.contains(rule))
}

/// The rules that go, then those that come, and options.
fn print_diff(before: Option<&Settings>, after: &Settings) -> anyhow::Result<()> {
    let none = Settings::default();
    let before = before.unwrap_or(&none);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for rule in missing_in(&after.rules, &before.rules) {
        writeln!(out, "- {rule}")?;
    }
    for rule in missing_in(&before.rules, &after.rules) {
        writeln!(out, "+ {rule}")?;
    }
    for (name, is_on) in [
        ("hide-target", (before.hide_target, after.hide_target)),
        ("if-listening", (before.if_listening, after.if_listening)),
    ] {
        if is_on.0 != is_on.1 {
            writeln!(out, "{} {name}", if is_on.1 { '+' } else { '-' })?;
        }
    }
    out.flush().context("print what changes")
}
