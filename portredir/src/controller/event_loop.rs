//! The work of the watcher: it keeps an active redirect in step with interfaces and
//! addresses, registers servers, and rolls unconfirmed changes back. Without the watcher,
//! traffic is redirected as before.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep, sleep_until};

use super::change::{Action, Change, Wanted};
use super::error::ControllerError;
use super::event::{Event, OnEvent};
use super::targets::Care;
use super::{Controller, Parts};
use crate::config::file::ConfigError;
use crate::host::preflight;
use crate::ipc::client::{Call, Control, Request, Role};
use crate::ipc::scrape::Scrapes;
use crate::loader::chain;
use crate::loader::pinned::{self, Found};
use crate::sys::bpffs::PinDir;
use crate::sys::capability;
use crate::sys::hang_up;
use crate::sys::lock::Lock;

/// The interval of the search for servers outside of the cgroup, which do not register by
/// themselves.
pub const RESCAN_INTERVAL: Duration = Duration::from_millis(500);

/// The interval at which the kernel is asked whether all programs are still attached.
const INSPECT_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest interval of looks at who takes target ports.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The time between looks, as a multiple of the time that a look takes.
const REST: u32 = 50;

/// The time after a change until the rules are read again, unless a command asks for them
/// earlier: changes in quick succession need not wait for the watcher.
const SETTLE: Duration = Duration::from_millis(100);

/// Opens the redirect that is active, for [`watch`].
///
/// # Errors
///
/// [`ControllerError::NotRunning`].
pub async fn open() -> Result<Controller, ControllerError> {
    preflight::check_capabilities()?;
    let _lock = Lock::wait().await?;
    let pins = PinDir::current().map_err(ControllerError::netns)?;
    let Found::Live(state) = pinned::find(&pins)? else {
        return Err(ControllerError::NotRunning);
    };
    Controller::open(Parts::pinned(*state, pins)?)
}

/// Watches until SIGINT, SIGTERM, a request to stop, or the end of the redirect. On SIGHUP
/// `reload` reads the settings again; where they are possible, this program is executed anew
/// with the same arguments.
///
/// # Errors
///
/// Commands cannot be received. Later failures are reported as events, and the work is
/// tried again.
pub async fn watch(
    mut controller: Controller,
    reload: impl Fn() -> Result<Option<Wanted>, ConfigError>,
    on_event: OnEvent<'_>,
) -> Result<(), ControllerError> {
    let mut control = listen()?;
    let mut signals = Signals::new()?;
    controller.serve_metrics(Scrapes::new(control.caller()), on_event);
    begin(&mut controller, on_event).await;
    if controller.has_ended() {
        return Ok(());
    }
    be_ready();
    let mut alive = watchdog();
    let mut rescan = every(RESCAN_INTERVAL);
    let mut inspect = every(INSPECT_INTERVAL);
    let mut look = every(LOOK_INTERVAL);
    let mut care = Care::start();
    // The time at which changed rules are read again.
    let mut reread = None;
    loop {
        care.follow(&controller);
        let deadline = controller.state().confirm_within();
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::HangUp => match check(&controller, &reload).await {
                    // The files are read anew, by the program as it is installed now.
                    Ok(()) => return Err(ControllerError::io("execute portredir")(again())),
                    Err(error) => on_event(Event::ReloadFailed(error)),
                },
                Signal::End => return Ok(()),
            },
            call = control.next() => {
                if serve(&mut controller, call, &mut reread, on_event).await.is_break() {
                    return Ok(());
                }
            }
            () = sleep_until(reread.unwrap_or_else(Instant::now)), if reread.is_some() => {
                reread = None;
                step(&mut controller, on_event).await;
            }
            () = controller.host_changed() => step(&mut controller, on_event).await,
            _ = rescan.tick(), if controller.needs_listeners() => register(&mut controller, on_event),
            () = sleep(deadline.unwrap_or_default()), if deadline.is_some() => {
                if roll_back(&mut controller, on_event).await? == RolledBack::ToNothing {
                    return Ok(());
                }
            }
            due = care.due() => care.attend(due, &mut controller, on_event).await,
            _ = inspect.tick() => match mend(&mut controller, on_event).await {
                Some(next) => inspect = next,
                None => return Ok(()),
            },
            _ = look.tick(), if controller.asks_for_listeners() =>
                look = follow_taken(&mut controller, on_event).await,
            _ = alive.tick() => tell_manager(&[NotifyState::Watchdog]),
        }
    }
}

/// Finds out what there is, so that the first question gets a measured answer.
async fn begin(controller: &mut Controller, on_event: OnEvent<'_>) {
    step(controller, on_event).await;
    if controller.needs_listeners() {
        register(controller, on_event);
    }
}

/// The clock by which systemd is told that this process is alive.
fn watchdog() -> Interval {
    let alive = sd_notify::watchdog_enabled().map(|period| period / 3);
    every(alive.unwrap_or(Duration::from_secs(3600)))
}

fn listen() -> Result<Control, ControllerError> {
    Control::listen().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ControllerError::Watched,
        _ => ControllerError::io("open the control socket")(error),
    })
}

/// Registers servers that began to listen outside of the cgroup.
fn register(controller: &mut Controller, on_event: OnEvent<'_>) {
    if let Err(error) = controller.register(on_event) {
        log::warn!("{}", chain(&error));
    }
}

/// Repairs what others detached, and returns the clock for the next time; `None` where the
/// redirect has ended. Where the kernel takes long to answer, as for thousands of interfaces,
/// questions are rare.
pub async fn mend(controller: &mut Controller, on_event: OnEvent<'_>) -> Option<Interval> {
    const LONGEST: Duration = Duration::from_secs(10);
    let inspection = controller.mend(on_event).await?;
    Some(after((inspection * REST).clamp(INSPECT_INTERVAL, LONGEST)))
}

/// Looks at who takes target ports, and returns the clock for the next time. Where there are
/// very many rules of packet filters, looks are rare.
pub async fn follow_taken(controller: &mut Controller, on_event: OnEvent<'_>) -> Interval {
    const LONGEST: Duration = Duration::from_secs(60);
    let took = controller
        .follow_taken(on_event)
        .await
        .unwrap_or_else(|error| {
            log::warn!("{}", chain(&error));
            LONGEST
        });
    after(took.saturating_mul(REST).clamp(LOOK_INTERVAL, LONGEST))
}

/// A clock whose first tick comes after its period.
fn after(rest: Duration) -> Interval {
    let mut next = tokio::time::interval_at(Instant::now() + rest, rest);
    next.set_missed_tick_behavior(MissedTickBehavior::Delay);
    next
}

/// Gives up what watching does not need, and tells systemd that the rules are in force.
fn be_ready() {
    if let Err(error) = capability::drop_capabilities() {
        log::warn!("cannot drop unneeded capabilities: {error}");
    }
    tell_manager(&[NotifyState::Ready]);
}

/// Answers a request. A command that has changed the rules is followed by more of them, so
/// they are read a little later, but before a question; `reread` has that time.
async fn serve(
    controller: &mut Controller,
    call: Call,
    reread: &mut Option<Instant>,
    on_event: OnEvent<'_>,
) -> ControlFlow<()> {
    if call.request.is_read() && reread.take().is_some() {
        step(controller, on_event).await;
    }
    match answer(controller, call) {
        Request::Changed => {
            reread.get_or_insert_with(|| Instant::now() + SETTLE);
        }
        Request::Stop => return ControlFlow::Break(()),
        // A question, which is answered.
        _ => {}
    }
    ControlFlow::Continue(())
}

/// Answers a request, and returns it.
fn answer(controller: &Controller, call: Call) -> Request {
    let request = call.request;
    call.answer(controller.reply(Role::Watcher, request));
    request
}

/// Works out what a reload would do, and does nothing.
async fn check(
    controller: &Controller,
    reload: &impl Fn() -> Result<Option<Wanted>, ConfigError>,
) -> Result<(), ControllerError> {
    let Some(wanted) = reload()? else {
        return Ok(());
    };
    let host = controller.host_view().await?;
    Change::plan(None, wanted, host)?.check()?;
    Ok(())
}

/// Brings everything in step with changes that the host and other commands made
/// meanwhile. A failure is reported, and the work is tried again at the next change.
async fn step(controller: &mut Controller, on_event: OnEvent<'_>) {
    let result = async {
        let _lock = Lock::wait().await?;
        controller.reread()?;
        controller.settle_targets()?;
        controller.reconcile(on_event).await
    };
    if let Err(error) = result.await {
        log::warn!("{}", chain(&error));
    }
}

/// The result of rolling an unconfirmed change back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RolledBack {
    /// The change was confirmed meanwhile.
    No,
    /// The settings before the change.
    ToSettings,
    /// No redirect ran before the change, so nothing is left to watch.
    ToNothing,
}

async fn roll_back(
    controller: &mut Controller,
    on_event: OnEvent<'_>,
) -> Result<RolledBack, ControllerError> {
    let _lock = Lock::wait().await?;
    controller.reread()?;
    if controller.state().confirm_within() != Some(Duration::ZERO) {
        return Ok(RolledBack::No);
    }
    let pending = controller.state().pending.as_ref();
    let was_nothing = pending.is_some_and(|pending| pending.before.is_none());
    on_event(Event::RolledBack);
    controller.act(Action::RollBack, on_event).await?;
    if was_nothing {
        return Ok(RolledBack::ToNothing);
    }
    controller.reconcile(on_event).await?;
    Ok(RolledBack::ToSettings)
}

/// A signal that the long-running modes listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP.
    HangUp,
    /// SIGINT or SIGTERM.
    End,
}

/// The signals of this process.
pub struct Signals {
    hang_up: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Begins to listen. Must be called inside a runtime.
    ///
    /// # Errors
    ///
    /// The kernel refuses a handler.
    pub fn new() -> Result<Self, ControllerError> {
        let listen = |kind| signal(kind).map_err(ControllerError::io("listen for signals"));
        let signals = Self {
            hang_up: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        };
        // A reload holds it back until here.
        hang_up::deliver()
            .map_err(|errno| ControllerError::io("listen for signals")(errno.into()))?;
        Ok(signals)
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hang_up.recv() => Signal::HangUp,
            _ = self.interrupt.recv() => Signal::End,
            _ = self.terminate.recv() => Signal::End,
        }
    }
}

/// A clock that skips the ticks that it missed.
#[must_use]
pub fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Replaces this process with the program as it is installed now, with the same
/// arguments. Returns only when that fails.
fn again() -> io::Error {
    let mut args = std::env::args_os();
    let Some(program) = args.next() else {
        return io::Error::other("the program was started without a name (argv[0])");
    };
    // The next SIGHUP must not end the program that begins now.
    if let Err(errno) = hang_up::hold_back() {
        return errno.into();
    }
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell_manager(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("cannot read the monotonic clock: {error}"),
    }
    let error = Command::new(program).args(args).exec();
    let _ = hang_up::deliver();
    error
}

/// Notifies systemd, if systemd has started this process.
fn tell_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot notify systemd: {error}");
    }
}
