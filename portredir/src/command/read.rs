//! The commands that show what is active: `rules`, `status` and `save`.

use super::{count, print};
use crate::cli::{ReadArgs, SaveArgs};
use crate::config::file;
use crate::controller::status;
use crate::ipc::client::Role;
use crate::observe::report::Report;

/// `portredir rules`.
///
/// # Errors
///
/// Nothing is active, or this user may not read it.
pub fn rules(args: ReadArgs) -> anyhow::Result<()> {
    let rules = status::read()?.settings.rules;
    if args.json {
        let json = serde_json::json!({ "schema": 1, "rules": rules });
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
    let answer = status::read()?;
    if args.json {
        return print(&(serde_json::to_string(&answer)? + "\n"));
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
    for interface in &answer.report.interfaces {
        text += &format!(
            "{:<15} {:<7} {:<14} {}\n",
            interface.name, interface.engine, interface.mode, interface.why
        );
    }
    print(&(text + &summary(&answer.report)))
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
    if args.dry_run {
        return print(&file::to_toml(&settings));
    }
    file::save(&args.file, &settings)?;
    eprintln!(
        "saved {} to {}",
        count(settings.rules.len(), "rule"),
        args.file.display()
    );
    Ok(())
}
