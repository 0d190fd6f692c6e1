//! The process that keeps what `portredir up` left in step with interfaces and
//! addresses, registers servers, and takes unconfirmed changes back. Without it
//! everything goes on as it is.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use crate::command::run::{LISTENERS, every, is_logging, reply};
use crate::controller::Host;
use crate::controller::transaction::{LifecycleError, wipe};
use crate::host::netlink::Netlink;
use crate::host::preflight;
use crate::ipc::client::{Control, Request, Role};
use crate::state::{self, Found};
use crate::sys::bpffs::PinDir;
use crate::sys::capability;
use crate::sys::lock::Lock;
use crate::sys::netns::netns_cookie;

/// How long after a change the rules are read again, unless somebody asks for them:
/// one change after the other need not wait for us.
const SETTLE: Duration = Duration::from_millis(100);

/// `portredir follow`: for a datapath that is there.
///
/// # Errors
///
/// [`LifecycleError::NotRunning`].
pub async fn follow() -> anyhow::Result<()> {
    preflight::check_capabilities()?;
    let lock = Lock::wait().await?;
    let pins = PinDir::new(netns_cookie().context("the cookie of the network namespace")?);
    let Found::Live(state) = state::find(&pins)? else {
        return Err(LifecycleError::NotRunning.into());
    };
    let settings = state.settings.clone();
    let host = Host::open(
        &settings,
        *state,
        Netlink::open()?,
        Some(pins),
        is_logging(),
    )?;
    drop(lock);
    follow_with(host, || Ok(())).await
}

/// The same for a host that this process has brought up. `check` says whether it
/// would come up again as it was started.
///
/// # Errors
///
/// When commands cannot be heard; what fails while it follows is said.
pub async fn follow_with(
    mut host: Host,
    check: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut control = Control::listen().context("another process follows already")?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    step(&mut host).await;
    if let Err(error) = capability::drop_capabilities() {
        log::warn!("keep capabilities that are not needed: {error}");
    }
    tell_manager(&[NotifyState::Ready]);
    let alive = sd_notify::watchdog_enabled().map(|period| period / 3);
    let mut alive = every(alive.unwrap_or(Duration::from_secs(3600)));
    let mut watch = every(LISTENERS);
    // When the rules that somebody changed are read again.
    let mut reread = None;
    loop {
        let deadline = host.state.confirm_within();
        tokio::select! {
            _ = hang_up.recv() => match check() {
                // What was read once is read anew, by the program as it is now.
                Ok(()) => return Err(again().into()),
                Err(error) => eprintln!("portredir: not reloaded: {error:#}"),
            },
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            call = control.next() => {
                let request = call.request;
                if request == Request::Status && reread.take().is_some() {
                    step(&mut host).await;
                }
                call.answer(reply(&host, Role::Follower, request));
                match request {
                    Request::Changed => {
                        reread.get_or_insert_with(|| Instant::now() + SETTLE);
                    }
                    Request::Stop => return Ok(()),
                    Request::Who | Request::Status => {}
                }
            }
            () = sleep_until(reread.unwrap_or_else(Instant::now)), if reread.is_some() => {
                reread = None;
                step(&mut host).await;
            }
            () = host.netlink.changed() => step(&mut host).await,
            _ = watch.tick(), if host.needs_listeners() => {
                if let Err(error) = host.register() {
                    log::warn!("{error:#}");
                }
            }
            () = sleep(deadline.unwrap_or_default()),
                if deadline.is_some() =>
            {
                if roll_back(&mut host).await? {
                    return Ok(());
                }
            }
            _ = alive.tick() => tell_manager(&[NotifyState::Watchdog]),
        }
    }
}

/// Makes everything follow what the host and other commands did meanwhile. What
/// fails is said, and tried again at the next change.
async fn step(host: &mut Host) {
    let result = async {
        let _lock = Lock::wait().await?;
        host.reread()?;
        host.follow().await
    };
    if let Err(error) = result.await {
        log::warn!("{error:#}");
    }
}

/// Takes an unconfirmed change back, if it still is one; says whether nothing
/// is left to follow.
async fn roll_back(host: &mut Host) -> anyhow::Result<bool> {
    let _lock = Lock::wait().await?;
    host.reread()?;
    let is_due = host.state.confirm_within() == Some(Duration::ZERO);
    let Some(pending) = host.state.pending.clone().filter(|_| is_due) else {
        return Ok(false);
    };
    eprintln!("nobody confirmed the last change in time; it is taken back");
    let snapshot = host.netlink.snapshot().await?;
    match pending.before {
        Some(settings) => {
            let state = host.next(settings)?;
            host.commit(&snapshot, state)?;
            host.follow().await?;
            Ok(false)
        }
        None => {
            let pins = PinDir::new(netns_cookie().context("the cookie of the network namespace")?);
            wipe(&pins, &host.netlink, &snapshot).await?;
            Ok(true)
        }
    }
}

/// Becomes the program as it is installed now, with the same arguments. Returns
/// only when that fails.
fn again() -> io::Error {
    let mut args = std::env::args_os();
    let Some(program) = args.next() else {
        return io::Error::other("this program does not know its name");
    };
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell_manager(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("read the clock: {error}"),
    }
    Command::new(program).args(args).exec()
}

/// Tells systemd, if that started us.
fn tell_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("tell systemd: {error}");
    }
}
