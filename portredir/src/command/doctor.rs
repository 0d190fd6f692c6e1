//! `portredir doctor`: an examination, and its result for people and programs.

use std::path::Path;

use serde::Serialize;

use super::error::CommandError;
use super::{count, print};
use crate::cli::DoctorArgs;
use crate::config::file;
use crate::config::options::named_by_environment;
use crate::config::settings::Settings;
use crate::controller::error::ControllerError;
use crate::controller::status;
use crate::host::features::Features;
use crate::host::netlink::Netlink;
use crate::ipc::client::{self, Answer};
use crate::loader::chain;
use crate::observe::doctor::{Diagnosis, Role, Running, State, Subject, examine};
use crate::plan::finding::wrapped;

/// The version of the layout; raised when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// The object that `doctor --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    running: bool,
    rules: Vec<String>,
    #[serde(flatten)]
    diagnosis: &'a Diagnosis,
}

/// `portredir doctor`.
///
/// # Errors
///
/// [`CommandError::Findings`], or the rules that were given are invalid.
pub async fn doctor(args: &DoctorArgs) -> anyhow::Result<()> {
    let (answer, unread) = match status::read() {
        Ok(answer) => (Some(answer), None),
        Err(
            ControllerError::NotRunning | ControllerError::Ending | ControllerError::LeftFilters(_),
        ) => (None, None),
        Err(error) => (None, Some(chain(&error))),
    };
    let settings = settings(args, answer.as_ref())?;
    let is_running = answer.is_some() || unread.is_some();
    let state = match answer {
        Some(answer) if answer.settings == settings => State::Running(running(answer)),
        Some(_) => State::Other,
        None if is_running => State::Other,
        None => State::Nothing,
    };
    let host = Netlink::open()?.snapshot().await?;
    let features = Features::read(settings.cgroup.path());
    let mut diagnosis = examine(&Subject {
        settings: &settings,
        state,
        host: &host,
        features: &features,
    });
    if let Some(why) = unread {
        diagnosis.not_checked("watcher", why);
    }
    if settings.rules.is_empty() {
        diagnosis.not_checked("rules", "nothing runs, and no rules are given");
    }
    let text = if args.json {
        let report = Report {
            schema: SCHEMA,
            running: is_running,
            rules: settings.rules.iter().map(ToString::to_string).collect(),
            diagnosis: &diagnosis,
        };
        serde_json::to_string(&report)? + "\n"
    } else {
        text(&diagnosis)
    };
    print(&text)?;
    match diagnosis.findings.len() {
        0 => Ok(()),
        findings => Err(CommandError::Findings(findings).into()),
    }
}

/// The settings to examine: those that are given, else those that run, else those of files.
fn settings(args: &DoctorArgs, answer: Option<&Answer>) -> anyhow::Result<Settings> {
    let options = &args.options;
    if !options.words.is_empty() || options.config.is_some() {
        return Ok(options.settings()?);
    }
    if let Some(answer) = answer {
        return Ok(options.options.over(&answer.settings));
    }
    if named_by_environment().is_some() || Path::new(file::DIR).exists() {
        return Ok(options.settings()?);
    }
    Ok(options.options.over(&Settings::default()))
}

fn running(answer: Answer) -> Running {
    Running {
        role: match answer.role {
            None => Role::Unwatched,
            Some(client::Role::Watcher) => Role::Watched(answer.pid),
            Some(client::Role::Foreground) => Role::Foreground(answer.pid),
        },
        confirm_within: answer.confirm_within,
        silent: answer.silent,
        flow_tables: answer.flow_tables,
        unregistered: answer.unregistered,
        drops: answer.report.drops,
        interfaces: answer.report.interfaces,
    }
}

/// The findings, the heaviest first; then the checks that could not be made, and those
/// that found nothing.
fn text(diagnosis: &Diagnosis) -> String {
    const MOST: usize = 50;
    let mut text = String::new();
    for finding in diagnosis.findings.iter().take(MOST) {
        text += &finding.to_string();
    }
    if let Some(more) = diagnosis
        .findings
        .len()
        .checked_sub(MOST)
        .filter(|more| *more > 0)
    {
        text += &format!(
            "and {}, which `doctor --json` lists\n",
            count(more, "more finding")
        );
    }
    for unchecked in &diagnosis.unchecked {
        let first = format!("not checked: {}: ", unchecked.check);
        text += &wrapped(&first, &unchecked.why);
    }
    for passed in &diagnosis.passed {
        text += &wrapped(&format!("ok: {}: ", passed.check), &passed.fact);
    }
    text
}
