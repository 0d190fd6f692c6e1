//! The foreground run: redirect, show counters, end with the process.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior};

use crate::cli::Run;
use crate::config::settings::Settings;
use crate::controller::Host;
use crate::controller::transaction::LifecycleError;
use crate::host::netlink::Netlink;
use crate::host::preflight;
use crate::ipc::client::{Answer, Control, Reply, Request, Role, Who};
use crate::observe::report::Report;
use crate::state::{self, Found, State};
use crate::sys::bpffs::PinDir;
use crate::sys::capability;
use crate::sys::lock::Lock;
use crate::sys::netns::netns_cookie;

/// How often to look for servers that did not register by themselves: those
/// outside of the cgroup.
pub const LISTENERS: Duration = Duration::from_millis(500);

/// Redirects until Ctrl-C or SIGTERM.
///
/// # Errors
///
/// What is wrong with the rules, the host or the kernel. Nothing is left
/// attached.
pub async fn run(cli: &Run, settings: Settings) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    snapshot.check(&settings)?;
    preflight::check_capabilities()?;
    preflight::check_kernel()?;
    let _lock = Lock::take()?;
    let pins = PinDir::new(netns_cookie().context("the cookie of the network namespace")?);
    // Who may not look there has not been there.
    if matches!(state::find(&pins), Ok(Found::Live(_) | Found::Unfinished)) {
        return Err(LifecycleError::Attached.into());
    }
    let mut control = Control::listen().context("listen for commands")?;

    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut host = Host::open(
        &settings,
        State::empty(settings.clone()),
        netlink,
        None,
        is_logging(),
    )?;
    let plan = host.plan(&snapshot, &settings);
    eprint!("{plan}");
    plan.check()?;
    let started = match host.start(&snapshot, &plan).await {
        Ok(()) => host
            .next(settings.clone())
            .and_then(|state| host.commit(&snapshot, state)),
        Err(error) => Err(error),
    };
    if let Err(error) = started {
        host.detach_all().await;
        return Err(error);
    }
    if let Err(error) = capability::drop_capabilities() {
        log::warn!("keep capabilities that are not needed: {error}");
    }
    let rules: Vec<_> = settings.rules.iter().map(ToString::to_string).collect();
    eprintln!("redirecting {}; Ctrl-C ends it", rules.join(" "));

    let mut ticks = every(cli.interval);
    ticks.tick().await;
    let mut watch = every(LISTENERS);
    let mut before = None;
    let result = loop {
        // What changed while we were busy is followed as well.
        tokio::select! {
            _ = hang_up.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            call = control.next() => {
                let request = call.request;
                call.answer(reply(&host, Role::Foreground, request));
                if request == Request::Stop {
                    break Ok(());
                }
            }
            () = host.netlink.changed() => {
                if let Err(error) = host.follow().await {
                    log::warn!("{error:#}");
                }
            }
            _ = watch.tick(), if host.needs_listeners() => {
                if let Err(error) = host.register() {
                    log::warn!("{error:#}");
                }
            }
            _ = ticks.tick() => match print_changes(cli, &host, before.as_ref()) {
                Ok(report) => before = Some(report),
                Err(error) => break Err(error),
            },
        }
    };
    // The rules go with the draining, the counters of their flows go on.
    let last = host.state.clone();
    if result.is_ok() {
        tokio::select! {
            _ = hang_up.recv() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            result = host.drain(settings.drain_timeout) => if let Err(error) = result {
                log::warn!("{error:#}");
            },
        }
    }
    let report = host.report_of(&last);
    host.detach_all().await;
    result?;
    print_final(cli, &report?)
}

/// A clock that does not catch up on what it missed.
#[must_use]
pub fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Whether the programs are to log what they decide.
#[must_use]
pub fn is_logging() -> bool {
    log::log_enabled!(target: "portredir_ebpf", log::Level::Debug)
}

/// Says who this process is, and, where that is asked, what there is.
pub fn reply(host: &Host, role: Role, request: Request) -> Reply {
    match request {
        Request::Status => answer(host, Some(role)).map_or_else(
            |error| Reply::Refused(format!("{error:#}")),
            |answer| Reply::Answer(Box::new(answer)),
        ),
        _ => Reply::Done(Who::this(role)),
    }
}

/// What there is, for who asks.
///
/// # Errors
///
/// When counters cannot be read.
pub fn answer(host: &Host, role: Option<Role>) -> anyhow::Result<Answer> {
    Ok(Answer {
        role,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        settings: host.state.settings.clone(),
        confirm_within: host.state.confirm_within().map(|left| left.as_secs()),
        report: host.report()?,
    })
}

fn print_changes(cli: &Run, host: &Host, before: Option<&Report>) -> anyhow::Result<Report> {
    let report = host.report()?;
    let mut out = std::io::stdout().lock();
    if cli.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        for line in report.changes(before) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush().context("print counters")?;
    Ok(report)
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
