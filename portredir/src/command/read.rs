//! The commands that show what is active: `rules`, `status` and `save`.

use serde::Serialize;

use super::{count, print, say};
use crate::cli::{ReadArgs, SaveArgs};
use crate::config::file;
use crate::config::save::Place;
use crate::controller::error::ControllerError;
use crate::controller::status;
use crate::ipc::client::{Answer, Role};
use crate::observe::attached::{HookReport, HookState, Interface};
use crate::observe::report::Report;

/// `portredir rules`.
///
/// # Errors
///
/// Nothing is active, or this user may not read it.
pub fn rules(args: ReadArgs) -> anyhow::Result<()> {
    let rules = read(args)?.settings.rules;
    if args.json {
        let json = serde_json::json!({ "schema": 1, "running": true, "rules": rules });
        return print(&format!("{json}\n"));
    }
    let lines: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
    print(&lines)
}

/// `portredir status`.
///
/// # Errors
///
/// Nothing is active, or this user may not read it.
pub fn status(args: ReadArgs) -> anyhow::Result<()> {
    let answer = read(args)?;
    if args.json {
        let running = Running {
            running: true,
            answer: &answer,
        };
        return print(&(serde_json::to_string(&running)? + "\n"));
    }
    let who = match answer.role {
        Some(Role::Foreground) => format!("running in the foreground, process {}", answer.pid),
        Some(Role::Watcher) => format!("active, watcher process {}", answer.pid),
        None => "active, but no watcher process tracks interfaces and addresses; start one: \
                 portredir watch"
            .to_owned(),
    };
    let mut text = format!("portredir {}: {who}\n", answer.version);
    if let Some(seconds) = answer.confirm_within {
        text += &format!(
            "the last change is rolled back in {seconds} s unless confirmed: portredir confirm\n"
        );
    }
    if let Some(seconds) = answer.rolled_back_ago {
        text += &format!(
            "the last change was rolled back {seconds} s ago, because it was not confirmed in time\n"
        );
    }
    for interface in &answer.report.interfaces {
        text += &attached(interface);
    }
    print(&(text + &summary(&answer.report)))
}

/// The line of an interface, and a line for each hook that is not simply attached.
fn attached(interface: &Interface) -> String {
    let report = &interface.report;
    let state = interface
        .state
        .map_or("-".to_owned(), |state| state.to_string());
    let mut text = format!(
        "{:<15} {:<7} {:<14} {state:<9} {}\n",
        report.name, report.engine, report.mode, report.why
    );
    if let Some(error) = &interface.error {
        text += &format!("  {error}\n");
    }
    let unusual = |hook: &&HookReport| hook.state != HookState::Attached;
    for hook in interface.hooks.iter().filter(unusual) {
        text += &format!("  {hook}\n");
    }
    text
}

/// The object that `status --json` prints.
#[derive(Serialize)]
struct Running<'a> {
    running: bool,
    #[serde(flatten)]
    answer: &'a Answer,
}

/// Reads the running configuration. Programs that read JSON get an object also when
/// there is none.
fn read(args: ReadArgs) -> anyhow::Result<Answer> {
    let answer = status::read();
    if args.json
        && matches!(
            answer,
            Err(ControllerError::NotRunning | ControllerError::Ending)
        )
    {
        let json = serde_json::json!({ "schema": 1, "running": false });
        print(&format!("{json}\n"))?;
    }
    Ok(answer?)
}

/// All counters: a line for each rule and interface, then packets by reason.
#[must_use]
pub fn summary(report: &Report) -> String {
    report
        .summary()
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

/// `portredir save`.
///
/// # Errors
///
/// Nothing is active, or the file cannot be written.
pub fn save(args: &SaveArgs) -> anyhow::Result<()> {
    let settings = status::read()?.settings;
    let text = file::to_toml(&settings);
    let Some(place) = Place::find(&args.file)?.filter(|_| !args.dry_run) else {
        return print(&text);
    };
    let backup = place.write(&text)?;
    let rules = count(settings.rules.len(), "rule");
    let kept = backup.map_or_else(String::new, |backup| {
        format!("; the previous file is now {}", backup.display())
    });
    say(&format!("saved {rules} to {}{kept}", args.file.display()));
    Ok(())
}
