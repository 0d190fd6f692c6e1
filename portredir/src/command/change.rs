//! The commands that change a redirect which outlives them: each plans one change, prints
//! it, and applies it unless `--dry-run` is given.

use std::time::Duration;

use super::error::CommandError;
use super::event;
use super::{check_limits, count, diff, journal, listening, print, print_pending, say};
use crate::cli::{ApplyArgs, ChangeArgs, DownArgs, ReplaceArgs, RmArgs, UpArgs};
use crate::config::file;
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::controller::change::{Action, Change, Diff, Turn};
use crate::controller::error::{ChangeError, ControllerError};
use crate::controller::event_loop::{self, Signals};
use crate::controller::metrics;
use crate::controller::transaction::{self, Transaction};
use crate::controller::watcher::{self, Stubborn};
use crate::host::{filters, preflight};
use crate::rule::{self, Meant, Sourced};
use crate::ruleset::services::endpoint::Selector;
use crate::ruleset::services::service::Target;
use crate::ruleset::shadow;

/// `portredir up`.
///
/// # Errors
///
/// The settings are impossible, or the kernel refuses. What was active stays active.
pub async fn up(args: &UpArgs) -> anyhow::Result<()> {
    if args.watch
        && args
            .options
            .config
            .as_deref()
            .is_some_and(file::is_standard)
    {
        return Err(CommandError::FollowsStandardInput.into());
    }
    let settings = args.options.settings()?;
    let options: ChangeOptions = args.change.into();
    let rules = settings.rules.len();
    if options.dry_run {
        check_limits(&settings)?;
    }
    let transaction = Transaction::begin(&mut event::print).await?;
    preflight::check_kernel()?;
    check_metrics(&settings, transaction.settings().ok())?;
    let change = transaction.plan(Action::Run(settings), options)?;
    listening::say_plan(&change);
    change.check()?;
    let difference = diff::text(change.diff());
    if options.dry_run {
        listening::say_packet_filters(change.settings());
        print(&difference)?;
        return allow_losses(args, change.diff());
    }
    allow_losses(args, change.diff())?;
    let made = change.diff().clone();
    let locked = transaction.apply(change, &mut event::print).await?;
    let controller = locked.release();
    journal::change("up", &made);
    listening::say_packet_filters(&controller.state().settings);
    let printed = print(&difference);
    say(&redirecting(rules));
    print_pending(options);
    if args.keep_watcher {
        return printed;
    }
    if !args.watch {
        drop(controller);
        watcher::start(&mut event::print)?;
        return printed;
    }
    watcher::stop(Stubborn::Kill, &mut event::print);
    let reload = || {
        let settings = args.options.settings()?;
        Ok(Some((Action::Run(settings), options)))
    };
    controller.log_decisions();
    event_loop::watch(controller, reload, &mut event::print).await?;
    printed
}

/// The number of rules in force, and what to do next.
fn redirecting(rules: usize) -> String {
    match rules {
        0 => "there are no rules, so nothing is redirected; add one, for example: \
              portredir add 80:8080"
            .to_owned(),
        rules => format!(
            "redirecting with {}; stop with: portredir down",
            count(rules, "rule")
        ),
    }
}

/// Checks that the watcher can serve metrics, unless it does so already.
fn check_metrics(settings: &Settings, running: Option<&Settings>) -> Result<(), ControllerError> {
    let is_served = running.is_some_and(|running| running.metrics == settings.metrics);
    match settings
        .metrics
        .get()
        .filter(|_| !is_served || watcher::is_missing())
    {
        Some(addr) => metrics::check(addr),
        None => Ok(()),
    }
}

/// Names the running rules that `up` removes, and refuses to unless that is asked for.
fn allow_losses(args: &UpArgs, diff: &Diff) -> anyhow::Result<()> {
    const MOST: usize = 10;
    let removed = &diff.removed;
    if removed.is_empty() {
        return Ok(());
    }
    let names = removed.iter().take(MOST);
    let names: Vec<_> = names.map(|removed| format!("`{}`", removed.rule)).collect();
    let more = match removed.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let losses = CommandError::Losses {
        number: removed.len(),
        names: names.join(", ") + &more,
        is_refused: !args.replaces(),
    };
    if args.replaces() {
        say(&losses.to_string());
        return Ok(());
    }
    Err(losses.into())
}

/// `portredir watch`.
///
/// # Errors
///
/// Nothing is active, or another watcher runs.
pub async fn watch() -> anyhow::Result<()> {
    let controller = event_loop::open().await?;
    let reload = || Ok(None);
    controller.log_decisions();
    Ok(event_loop::watch(controller, reload, &mut event::print).await?)
}

/// `portredir add`.
///
/// # Errors
///
/// The rules contradict the running rules.
pub async fn add(args: &ChangeArgs) -> anyhow::Result<()> {
    let new = rule::from_words(&args.rules)?;
    adjust("add", args.change.into(), |running| {
        let mut rules = sourced(running);
        for new in new {
            match rules.iter_mut().find(|old| old.rule == new.rule) {
                None => rules.push(new),
                Some(old) => {
                    let label = new.label.or(&old.label);
                    if old.label == label {
                        say(&format!("rule `{}` already exists", old.rule));
                    }
                    old.label = label;
                }
            }
        }
        shadow::check(&rules)?;
        Ok(running.with_rules(rules))
    })
    .await
}

/// The running rules.
fn sourced(running: &Settings) -> Vec<Sourced> {
    running.labelled().map(Sourced::running).collect()
}

/// `portredir rm`.
///
/// # Errors
///
/// A rule does not run, no rule has the name, or the kernel refuses.
pub async fn rm(args: &RmArgs) -> anyhow::Result<()> {
    let old = rule::names_from_words(&args.change.rules)?;
    adjust("rm", args.change.change.into(), |running| {
        let before = sourced(running);
        let mut rules = before.clone();
        for meant in &old {
            if !args.if_exists && !before.iter().any(|rule| is_meant(meant, rule)) {
                let hint = "nothing was removed; to ignore such rules, add --if-exists";
                return Err(unknown(meant, running, hint).into());
            }
            rules.retain(|rule| !is_meant(meant, rule));
        }
        Ok(running.with_rules(rules))
    })
    .await
}

/// `portredir replace`.
///
/// # Errors
///
/// The old rule does not run, several rules have the name, or the new rule contradicts the
/// other rules.
pub async fn replace(args: &ReplaceArgs) -> anyhow::Result<()> {
    let rules = rule::names_from_words(&args.rules)?;
    let count = rules.len();
    let two = <[Meant; 2]>::try_from(rules);
    let [old, new] = two.map_err(|_| CommandError::NotTwo(count))?;
    let mut new = new.rule()?;
    adjust("replace", args.change.into(), |running| {
        let mut rules = sourced(running);
        let mut places = (0..).zip(&rules).filter(|(_, rule)| is_meant(&old, rule));
        let Some((place, _)) = places.next() else {
            if running.rules.contains(&new.rule) {
                say(&format!("rule `{}` already exists", new.rule));
                return Ok(running.clone());
            }
            let hint = "to add a new rule, use `portredir add`";
            return Err(unknown(&old, running, hint).into());
        };
        if let (Some(_), Meant::Name(name, _)) = (places.next(), &old) {
            return Err(CommandError::SeveralRules(name.clone()).into());
        }
        // Whoever writes a new target has no reason to write the label again.
        new.label = new.label.or(&rules[place].label);
        rules[place] = new;
        shadow::check(&rules)?;
        Ok(running.with_rules(rules))
    })
    .await
}

/// Whether a running rule is one that was named.
fn is_meant(meant: &Meant, running: &Sourced) -> bool {
    match meant {
        Meant::Name(name, _) => running.label.name.as_ref() == Some(name),
        Meant::Rule(meant) => meant.rule == running.rule,
    }
}

/// The error for a rule that does not run, or for a name that no rule has.
fn unknown(meant: &Meant, running: &Settings, hint: &'static str) -> CommandError {
    match meant {
        Meant::Rule(meant) => {
            let mut others = running.rules.iter();
            let near = others.find(|other| other.ports == meant.rule.ports);
            CommandError::NoRule {
                near: near.cloned().map(Box::new),
                rule: Box::new(meant.rule.clone()),
                hint,
            }
        }
        Meant::Name(name, _) => {
            let mut known: Vec<_> = running
                .labelled()
                .filter_map(|rule| Some(rule.label.name?.to_string()))
                .collect();
            known.sort();
            known.dedup();
            CommandError::NoName {
                name: name.clone(),
                known,
                hint,
            }
        }
    }
}

/// `portredir apply`.
///
/// # Errors
///
/// The file is invalid, or it changes an option that only `up` can change.
pub async fn apply(args: &ApplyArgs) -> anyhow::Result<()> {
    let result = adjust("apply", args.change.into(), |running| {
        Ok(file::load(&args.file)?.over(running))
    });
    result.await.map_err(|error| match error.downcast() {
        Ok(ChangeError::NeedsUp(option)) => CommandError::NeedsUp {
            option,
            path: args.file.display().to_string(),
        }
        .into(),
        Ok(error) => error.into(),
        Err(error) => error,
    })
}

/// Changes rules, and the options that can change while programs stay attached.
async fn adjust(
    verb: &str,
    options: ChangeOptions,
    wanted: impl FnOnce(&Settings) -> anyhow::Result<Settings>,
) -> anyhow::Result<()> {
    let transaction = Transaction::begin(&mut event::print).await?;
    let after = wanted(transaction.settings()?)?;
    let is_same = *transaction.settings()? == after;
    if options.dry_run {
        check_limits(&after)?;
    }
    let change = transaction.plan(Action::Adjust(after), options)?;
    for warning in change.warnings() {
        say(&warning.to_string());
    }
    if is_same {
        say("nothing to change");
        return Ok(());
    }
    listening::say_new(&change);
    change.check()?;
    let difference = diff::text(change.diff());
    if !options.dry_run {
        apply_change(verb, transaction, change).await?;
    }
    let printed = print(&difference);
    if !options.dry_run {
        print_pending(options);
    }
    printed
}

async fn apply_change(
    verb: &str,
    transaction: Transaction,
    change: Change,
) -> Result<(), ControllerError> {
    let made = change.diff().clone();
    let locked = transaction.apply(change, &mut event::print).await?;
    drop(locked.release());
    journal::change(verb, &made);
    if watcher::is_missing() {
        say("no watcher process tracks interfaces and addresses; start one: portredir watch");
    }
    Ok(())
}

/// `portredir drain` and `portredir undrain`.
///
/// # Errors
///
/// No rule has the target, or the kernel refuses.
pub async fn turn(which: Selector, turn: Turn) -> anyhow::Result<()> {
    let transaction = Transaction::begin(&mut event::print).await?;
    transaction.settings()?;
    let state = transaction.state();
    let selected = state
        .into_iter()
        .flat_map(|state| state.services.selected(which));
    let wanted = |target: &&Target| target.drained.is_some() != (turn == Turn::Drain);
    let mut names: Vec<_> = selected
        .filter(wanted)
        .map(|target| target.endpoint.to_string())
        .collect();
    names.dedup();
    let change = transaction.plan(Action::Turn(which, turn), ChangeOptions::default())?;
    if names.is_empty() {
        say("nothing to change");
        return Ok(());
    }
    let verb = match turn {
        Turn::Drain => "drain",
        Turn::Undrain => "undrain",
    };
    apply_change(&format!("{verb} {which}"), transaction, change).await?;
    let names = names.join(", ");
    say(&match turn {
        Turn::Drain => format!("{names} drained; established connections continue"),
        Turn::Undrain => format!("{names} takes new connections again, while it is up"),
    });
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
    apply_change("confirm", transaction, change).await?;
    say("change confirmed");
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
        journal::change("down --force", &Diff::default());
        say("all programs are detached");
        return Ok(());
    }
    preflight::check_capabilities()?;
    if let Some(foreground) = watcher::foreground() {
        let pid = foreground.pid;
        if args.dry_run {
            say(&format!("would stop process {pid}"));
        } else {
            watcher::stop_foreground(pid)?;
            say(&format!("process {pid} stopped"));
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
    let made = change.diff().clone();
    drain_and_detach(transaction, timeout).await?;
    journal::change("down", &made);
    say("stopped; all programs are detached");
    print(&difference)
}

/// Removes what a killed run has left where nothing runs.
async fn remove_left(transaction: Transaction, args: &DownArgs) -> anyhow::Result<()> {
    let left = filters::carriers()?.join(", ");
    if left.is_empty() {
        say("not running");
    } else if args.dry_run {
        say(&format!(
            "not running; would remove the tc filters of a killed run on {left}"
        ));
    } else {
        transaction.remove_left().await?;
        say(&format!(
            "not running; the tc filters of a killed run on {left} are removed"
        ));
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
