//! Events as people read them.

use std::time::Duration;

use super::{count, journal, progress, say};
use crate::config::engine::EngineChoice;
use crate::controller::event::{DetachReason, Event, Interrupted, News};
use crate::loader::local_peers::EndSocketsError;
use crate::loader::{Unregistered, chain};
use crate::rule::Rule;
use crate::sys::syslog::Severity;

/// Prints an event to standard error, and writes it to the log of the system.
#[expect(clippy::needless_pass_by_value, reason = "an event is told once")]
pub fn print(event: Event) {
    let text = text(&event);
    if let Event::Waiting { connections, left } = event {
        let is_over = connections == 0 || left.is_zero();
        progress::show((!is_over).then_some(text));
        return;
    }
    say(&text);
    if let Some(severity) = severity(&event) {
        journal::event(severity, &text);
    }
}

/// The importance of an event in the log of the system; `None` when it does not belong
/// there.
const fn severity(event: &Event) -> Option<Severity> {
    match event {
        Event::Draining { .. } | Event::Waiting { .. } | Event::WatcherIsSlow => None,
        Event::Attached(_)
        | Event::Detached { .. }
        | Event::Renamed { .. }
        | Event::Covered(_)
        | Event::TargetTurned { why: None, .. }
        | Event::WayChanged {
            news: News::Mended(_) | News::Turned(_),
            ..
        }
        | Event::SocketsEnded { .. }
        | Event::Recovered(_) => Some(Severity::Notice),
        _ => Some(Severity::Warning),
    }
}

const WATCHER_IS_SLOW: &str =
    "the watcher process has not started within 5 s; check with: portredir status";

/// An event as a sentence.
fn text(event: &Event) -> String {
    match event {
        Event::Recovered(Interrupted::Up) => {
            "an earlier `portredir up` was interrupted; removing what it attached".to_owned()
        }
        Event::Recovered(Interrupted::Down) => {
            "an earlier `portredir down` was interrupted; finishing it".to_owned()
        }
        Event::Attached(planned) => planned.to_string(),
        Event::Detached { interface, reason } => match reason {
            DetachReason::Stopped => format!("{interface}: detached"),
            DetachReason::InterfaceGone => format!("{interface}: the interface was removed"),
        },
        Event::Renamed { from, to } => format!("{from} was renamed to {to}"),
        Event::Covered(skipped) => skipped.to_string(),
        Event::Refused(refused) => refused.to_string(),
        Event::Repaired { interface, hooks } => format!(
            "{interface}: another program detached portredir; attached again ({})",
            hooks.join("; ")
        ),
        Event::Fought { interface, wait } => format!(
            "{interface}: another program keeps detaching portredir; the next repair is in {} s at \
             the earliest; find that program and stop it",
            wait.as_secs()
        ),
        Event::PinnedAgain(dir) => {
            format!("another program removed pins from {dir}; they are pinned again")
        }
        Event::AttachFailed(text)
        | Event::LocalIncomplete(text)
        | Event::MetricsFailed(text)
        | Event::BehindIpsec(text) => text.clone(),
        Event::Unregistered { engine, server } => unregistered(*engine, *server),
        Event::Draining {
            connections,
            timeout,
        } => draining(*connections, *timeout),
        Event::Waiting { connections, left } => waiting(*connections, *left),
        Event::CutOff { connections } => {
            format!("cutting off {}", count(*connections, "connection"))
        }
        Event::TargetTurned { target, rule, why } => turned(target, rule, why.as_deref()),
        Event::WayChanged { target, news } => format!("target {target}: {news}"),
        Event::SocketsEnded { sockets } => format!(
            "{} of this host had a target that is down: ended, as `cut` says",
            count(*sockets, "socket")
        ),
        Event::SocketsStay(error) => sockets_stay(error),
        Event::RolledBack => "change rolled back: not confirmed in time".to_owned(),
        Event::Killed(pid) => format!("killing process {pid}"),
        Event::WatcherIsSlow => WATCHER_IS_SLOW.to_owned(),
        Event::ReloadFailed(error) => format!(
            "portredir: reload failed, keeping the running rules: {}",
            chain(error)
        ),
        Event::Unlocked(error) => format!("{}; continuing", chain(error)),
    }
}

/// The wait for connections, as it begins.
fn draining(connections: usize, timeout: Duration) -> String {
    format!(
        "waiting up to {} s for {} to end; Ctrl-C stops waiting",
        timeout.as_secs_f64(),
        count(connections, "connection")
    )
}

/// The reason why sockets outlive a target of theirs.
fn sockets_stay(error: &EndSocketsError) -> String {
    format!(
        "sockets of this host that are connected to a target that is down stay, though their \
         rule says `cut`: {}",
        chain(error)
    )
}

/// A target that has come up, or has gone down for a reason.
fn turned(target: &str, rule: &Rule, why: Option<&str>) -> String {
    match why {
        Some(why) => format!("target {target} of {rule} is down: {why}"),
        None => format!("target {target} of {rule} is up"),
    }
}

/// The wait for connections, while it lasts.
fn waiting(connections: usize, left: Duration) -> String {
    format!(
        "waiting for {} to end, {} s left; Ctrl-C stops waiting",
        count(connections, "connection"),
        left.as_secs_f64().ceil()
    )
}

/// A server that a socket lookup cannot deliver to.
fn unregistered(engine: EngineChoice, server: Unregistered) -> String {
    let (port, why) = (server.port, server.why());
    if engine == EngineChoice::Auto {
        return format!(
            "clients behind IPsec policies cannot reach the server on port {port}: {why}"
        );
    }
    format!("--engine socket cannot deliver to the server on port {port}: {why}; use --engine auto")
}
