//! The commands that print the running rules: `rules` and `save`.

use super::{count, print, say};
use crate::cli::{ReadArgs, SaveArgs};
use crate::config::file;
use crate::config::save::Place;
use crate::controller::error::ControllerError;
use crate::controller::status;
use crate::ipc::client::Answer;
use crate::observe::report::Report;
use crate::observe::table::Header;
use crate::rule::object::RuleObject;

/// `portredir rules`.
///
/// # Errors
///
/// Nothing is active, or this user may not read it.
pub fn rules(args: ReadArgs) -> anyhow::Result<()> {
    let settings = read(args)?.settings;
    if args.json {
        let objects: Vec<_> = settings.labelled().map(RuleObject::from).collect();
        let json = serde_json::json!({
            "schema": 1,
            "running": true,
            "rules": settings.rules,
            "rule_objects": objects,
        });
        return print(&format!("{json}\n"));
    }
    let lines: String = settings
        .labelled()
        .map(|rule| format!("{rule}\n"))
        .collect();
    print(&lines)
}

/// Reads the running configuration. Programs that read JSON get an object also when
/// there is none.
pub(super) fn read(args: ReadArgs) -> anyhow::Result<Answer> {
    let answer = status::read();
    if args.json {
        print_nothing(&answer)?;
    }
    Ok(answer?)
}

/// Prints the object that says that nothing runs, if that is the error.
pub(super) fn print_nothing<T>(answer: &Result<T, ControllerError>) -> anyhow::Result<()> {
    let is_nothing = matches!(
        answer,
        Err(ControllerError::NotRunning
            | ControllerError::Ending
            | ControllerError::LeftFilters(_))
    );
    if is_nothing {
        let json = serde_json::json!({ "schema": 1, "running": false });
        print(&format!("{json}\n"))?;
    }
    Ok(())
}

/// All counters: a line for each rule and interface, then packets by reason.
#[must_use]
pub fn summary(report: &Report, header: Header) -> String {
    report
        .summary(header)
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
