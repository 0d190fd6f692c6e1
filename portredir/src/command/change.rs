//! The commands that change a redirect which outlives them: each plans one change, prints
//! it, and applies it unless `--dry-run` is given.

use std::time::Duration;

use super::event;
use super::{count, diff, print, print_pending};
use crate::cli::{ApplyArgs, ChangeArgs, DownArgs, UpArgs};
use crate::config::file;
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::controller::change::{Action, Change};
use crate::controller::error::ControllerError;
use crate::controller::event_loop::{self, Signals};
use crate::controller::transaction::{self, Transaction};
use crate::controller::watcher::{self, Stubborn};
use crate::host::{filters, preflight};
use crate::rule::{self, Rule, Sourced};
use crate::ruleset::shadow;

/// `portredir up`.
///
/// # Errors
///
/// The settings are impossible, or the kernel refuses. What was active stays active.
pub async fn up(args: &UpArgs) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
    let options = args.change.into();
    let rules = settings.rules.len();
    let transaction = Transaction::begin(&mut event::print).await?;
    preflight::check_kernel()?;
    let change = transaction.plan(Action::Run(settings), options)?;
    if let Some(plan) = change.plan_of_interfaces() {
        eprint!("{plan}");
    }
    change.check()?;
    let difference = diff::text(change.diff());
    if options.dry_run {
        return print(&difference);
    }
    let locked = transaction.apply(change, &mut event::print).await?;
    print(&difference)?;
    let controller = locked.release();
    eprintln!(
        "redirecting with {}; stop with: portredir down",
        count(rules, "rule")
    );
    print_pending(options);
    if !args.watch {
        drop(controller);
        return Ok(watcher::start(&mut event::print)?);
    }
    watcher::stop(Stubborn::Kill, &mut event::print);
    let reload = || {
        let settings = args.options.settings()?;
        Ok(Some((Action::Run(settings), options)))
    };
    Ok(event_loop::watch(controller, reload, &mut event::print).await?)
}

/// `portredir watch`.
///
/// # Errors
///
/// Nothing is active, or another watcher runs.
pub async fn watch() -> anyhow::Result<()> {
    let controller = event_loop::open().await?;
    let reload = || Ok(None);
    Ok(event_loop::watch(controller, reload, &mut event::print).await?)
}

/// `portredir add`.
///
/// # Errors
///
/// The rules contradict the running rules.
pub async fn add(args: &ChangeArgs) -> anyhow::Result<()> {
    let new = rule::from_words(&args.rules)?;
    adjust(args.change.into(), |running| {
        let mut rules: Vec<_> = running
            .rules
            .iter()
            .cloned()
            .map(Sourced::running)
            .collect();
        for sourced in new {
            if running.rules.contains(&sourced.rule) {
                eprintln!("rule `{}` already exists", sourced.rule);
            } else {
                rules.push(sourced);
            }
        }
        shadow::check(&rules)?;
        Ok(Settings {
            rules: rules.into_iter().map(|sourced| sourced.rule).collect(),
            ..running.clone()
        })
    })
    .await
}

/// `portredir rm`.
///
/// # Errors
///
/// The kernel refuses.
pub async fn rm(args: &ChangeArgs) -> anyhow::Result<()> {
    let old = rule::from_words(&args.rules)?;
    adjust(args.change.into(), |running| {
        let mut settings = running.clone();
        for Sourced { rule, .. } in old {
            if settings.rules.contains(&rule) {
                settings.rules.retain(|other| *other != rule);
            } else {
                let is_near = |other: &&Rule| other.ports == rule.ports;
                let near = running.rules.iter().find(is_near);
                let near = near.map_or_else(String::new, |near| {
                    format!("; the running rule is `{near}`")
                });
                eprintln!("rule `{rule}` does not exist{near}");
            }
        }
        Ok(settings)
    })
    .await
}

/// `portredir apply`.
///
/// # Errors
///
/// The file is invalid, or it changes an option that only `up` can change.
pub async fn apply(args: &ApplyArgs) -> anyhow::Result<()> {
    adjust(args.change.into(), |running| {
        Ok(file::load(&args.file)?.over(running))
    })
    .await
}

/// Changes rules, and the options that can change while programs stay attached.
async fn adjust(
    options: ChangeOptions,
    wanted: impl FnOnce(&Settings) -> anyhow::Result<Settings>,
) -> anyhow::Result<()> {
    let transaction = Transaction::begin(&mut event::print).await?;
    let after = wanted(transaction.settings()?)?;
    let is_same = *transaction.settings()? == after;
    let change = transaction.plan(Action::Adjust(after), options)?;
    for warning in change.warnings() {
        eprintln!("{warning}");
    }
    if is_same {
        eprintln!("nothing to change");
        return Ok(());
    }
    let difference = diff::text(change.diff());
    if !options.dry_run {
        apply_change(transaction, change).await?;
    }
    print(&difference)?;
    if !options.dry_run {
        print_pending(options);
    }
    Ok(())
}

async fn apply_change(transaction: Transaction, change: Change) -> Result<(), ControllerError> {
    let locked = transaction.apply(change, &mut event::print).await?;
    drop(locked.release());
    Ok(())
}

/// `portredir confirm`.
///
/// # Errors
///
/// No change waits for its confirmation.
pub async fn confirm() -> anyhow::Result<()> {
    let transaction = Transaction::begin(&mut event::print).await?;
    transaction.settings()?;
    let change = transaction.plan(Action::Confirm, ChangeOptions::default())?;
    apply_change(transaction, change).await?;
    eprintln!("change confirmed");
    Ok(())
}

/// `portredir down`.
///
/// # Errors
///
/// A program cannot be detached.
pub async fn down(args: &DownArgs) -> anyhow::Result<()> {
    if args.force {
        transaction::remove_by_force(&mut event::print).await?;
        eprintln!("all programs are detached");
        return Ok(());
    }
    preflight::check_capabilities()?;
    if let Some(foreground) = watcher::foreground() {
        let pid = foreground.pid;
        if args.dry_run {
            eprintln!("would stop process {pid}");
        } else {
            watcher::stop_foreground(pid)?;
            eprintln!("process {pid} stopped");
        }
        return Ok(());
    }
    let transaction = Transaction::begin(&mut event::print).await?;
    let Some(state) = transaction.state() else {
        return remove_left(transaction, args).await;
    };
    let timeout = args.drain_timeout.unwrap_or(state.settings.drain_timeout).0;
    let change = transaction.plan(Action::Detach, ChangeOptions::default())?;
    let difference = diff::text(change.diff());
    if args.dry_run {
        return print(&difference);
    }
    watcher::stop(Stubborn::Leave, &mut event::print);
    drain_and_detach(transaction, timeout).await?;
    print(&difference)
}

/// Removes what a killed run has left where nothing runs.
async fn remove_left(transaction: Transaction, args: &DownArgs) -> anyhow::Result<()> {
    let left = filters::carriers()?.join(", ");
    if left.is_empty() {
        eprintln!("not running");
    } else if args.dry_run {
        eprintln!("not running; would remove the tc filters of a killed run on {left}");
    } else {
        transaction.remove_left().await?;
        eprintln!("not running; the tc filters of a killed run on {left} are removed");
    }
    Ok(())
}

/// Drains for `timeout` at most, or until a signal, then detaches.
async fn drain_and_detach(transaction: Transaction, timeout: Duration) -> anyhow::Result<()> {
    let settings = transaction.settings()?.clone();
    let mut locked = transaction.open(settings)?;
    let mut signals = Signals::new()?;
    let mut on_event = event::print;
    tokio::select! {
        _ = signals.next() => {}
        result = locked.apply(Action::Drain(timeout), &mut on_event) => result?,
    }
    locked.apply(Action::Detach, &mut event::print).await?;
    Ok(())
}
