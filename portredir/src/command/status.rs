//! `portredir status`: what the kernel says, and what is wrong.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::error::CommandError;
use super::read::{read, summary};
use super::{count, listening, print, say};
use crate::cli::StatusArgs;
use crate::config::settings::Settings;
use crate::config::{file, options};
use crate::controller::change::HostView;
use crate::controller::health;
use crate::ipc::client::{Answer, Role};
use crate::loader::chain;
use crate::observe::attached::{HookReport, HookState, Interface};
use crate::observe::faults::Fault;
use crate::observe::listening::Listening;
use crate::observe::table::Header;
use crate::rule::Labelled;
use crate::rule::object::RuleObject;

/// The time that the watcher needs for a change of the host.
const SETTLE: Duration = Duration::from_millis(300);

/// The width of a line of text, as far as words allow.
const WIDTH: usize = 80;

/// `portredir status`.
///
/// # Errors
///
/// Nothing is active, or this user may not read it. With `--check`, something is wrong.
pub async fn status(args: StatusArgs) -> anyhow::Result<()> {
    let mut answer = read(args.read)?;
    let mut host = host(&answer).await;
    let mut faults = faults(&answer, host.as_ref());
    if args.check && !faults.is_empty() && answer.silent.is_none() {
        // A new interface may be about to be attached.
        tokio::time::sleep(SETTLE).await;
        answer = read(args.read)?;
        host = self::host(&answer).await;
        faults = self::faults(&answer, host.as_ref());
    }
    let number = faults.len();
    if args.check && !args.read.json {
        print(&check(&faults))?;
    } else {
        let listening = host.map(|host| listening::of_running(&answer.settings, &host.snapshot));
        let status = Status {
            running: true,
            healthy: faults.is_empty(),
            faults: &faults,
            differs_from: differing_config(&answer.settings),
            listening: listening.unwrap_or_default(),
            rule_objects: answer.settings.labelled().map(RuleObject::from).collect(),
            answer: &answer,
        };
        if args.read.json {
            print(&(serde_json::to_string(&status)? + "\n"))?;
        } else {
            print(&text(&status, args.table.into()))?;
        }
    }
    if args.check && number > 0 {
        return Err(CommandError::Degraded(number).into());
    }
    Ok(())
}

/// The host; `None` and a message where the host cannot be read.
async fn host(answer: &Answer) -> Option<HostView> {
    let host = health::host(answer).await;
    host.map_err(|error| say(&format!("cannot read the interfaces: {}", chain(&error))))
        .ok()
}

fn faults(answer: &Answer, host: Option<&HostView>) -> Vec<Fault> {
    let Some(host) = host else {
        return Vec::new();
    };
    let mut faults = health::faults(answer, host);
    match health::way_faults(answer, host) {
        Ok(more) => faults.extend(more),
        Err(error) => say(&format!(
            "cannot read the ways to targets: {}",
            chain(&error)
        )),
    }
    faults
}

/// The object that `status --json` prints.
#[derive(Serialize)]
struct Status<'a> {
    running: bool,
    healthy: bool,
    faults: &'a [Fault],
    /// The configuration on disk, if its rules are not those that run.
    differs_from: Option<PathBuf>,
    listening: Vec<Listening>,
    rule_objects: Vec<RuleObject>,
    #[serde(flatten)]
    answer: &'a Answer,
}

fn check(faults: &[Fault]) -> String {
    if faults.is_empty() {
        return "healthy\n".to_owned();
    }
    let lines = faults.iter().map(|fault| match &fault.fix {
        Some(fix) => format!("{}; fix: {fix}\n", fault.what),
        None => format!("{}\n", fault.what),
    });
    lines.collect()
}

fn text(status: &Status<'_>, header: Header) -> String {
    let answer = status.answer;
    let mut text = String::new();
    for line in head(answer) {
        text += &(line + "\n");
    }
    for interface in &answer.report.interfaces {
        text += &attached(interface);
    }
    text += &summary(&answer.report, header);
    text += &labels(&answer.settings);
    text += &listening::text(&status.listening);
    if let Some(path) = &status.differs_from {
        let path = path.display();
        let _ = writeln!(
            text,
            "running rules differ from {path}; show how: portredir diff {path}"
        );
    }
    if !status.healthy {
        let faults = count(status.faults.len(), "fault");
        let _ = writeln!(text, "{faults}; show how to mend: portredir status --check");
    }
    text
}

/// A line for each rule with a name or a comment.
fn labels(settings: &Settings) -> String {
    let labelled = settings.labelled().filter(|rule| !rule.label.is_empty());
    let line = |Labelled { rule, label }| format!("{rule}:{label}\n");
    labelled.map(line).collect()
}

/// The process that keeps the redirect in step with the host.
pub(super) fn who(answer: &Answer) -> String {
    let pid = answer.pid;
    match (answer.role, answer.silent) {
        (Some(Role::Foreground), _) => format!("running in the foreground, process {pid}"),
        (Some(Role::Watcher), _) => format!("active, watcher process {pid}"),
        (None, Some(pid)) => format!("active, but the watcher process {pid} does not answer"),
        (None, None) => "active, but no watcher process tracks interfaces and addresses; start \
                         one: portredir watch"
            .to_owned(),
    }
}

/// The lines about the redirect as a whole.
fn head(answer: &Answer) -> Vec<String> {
    let mut lines = vec![format!("portredir {}: {}", answer.version, who(answer))];
    if let Some(since) = &answer.since {
        lines.push(format!("since {since}"));
    }
    let changed = answer.changed.as_ref();
    if let Some(changed) = changed.filter(|changed| answer.since.as_ref() != Some(*changed)) {
        lines.push(format!("changed {changed}"));
    }
    let options = file::changed_options(&answer.settings);
    if !options.is_empty() {
        lines.push(format!("options: {}", options.join(", ")));
    }
    if let Some(unchecked) = health::unchecked(answer) {
        lines.push(unchecked);
    }
    if let Some(seconds) = answer.confirm_within {
        lines.push(match answer.role {
            Some(_) => format!(
                "the last change is rolled back in {seconds} s unless confirmed: portredir confirm"
            ),
            None => "the last change is not confirmed, and no watcher process runs to roll it \
                     back; to keep it: portredir confirm"
                .to_owned(),
        });
    }
    if let Some(seconds) = answer.confirmed_ago {
        lines.push(format!("the last change was confirmed {seconds} s ago"));
    }
    if let Some(seconds) = answer.rolled_back_ago {
        lines.push(format!(
            "the last change was rolled back {seconds} s ago, because it was not confirmed in time"
        ));
    }
    lines
}

/// The line of an interface, and a line for each hook that is not simply attached.
fn attached(interface: &Interface) -> String {
    let report = &interface.report;
    let state = interface
        .state
        .map_or("-".to_owned(), |state| state.to_string());
    let mut text = format!(
        "{:<15} {:<7} {:<14} {state:<9}",
        report.name, report.engine, report.mode
    );
    let is_long = text.len() + 1 + report.why.len() > WIDTH;
    if is_long {
        text = format!("{}\n ", text.trim_end());
    }
    text += &format!(" {}\n", report.why);
    if let Some(error) = &interface.error {
        let _ = writeln!(text, "  {error}");
    }
    let unusual = |hook: &&HookReport| hook.state != HookState::Attached;
    for hook in interface.hooks.iter().filter(unusual) {
        let _ = writeln!(text, "  {hook}");
    }
    text
}

/// The configuration that the next start would read, if it exists, can be read, and has
/// other rules than those that run, or other labels of rules.
fn differing_config(running: &Settings) -> Option<PathBuf> {
    let path = options::named_by_environment().unwrap_or_else(|| Path::new(file::DIR).to_owned());
    if file::is_standard(&path) {
        return None;
    }
    let config = file::load(&path).ok()?.over(&Settings::default());
    let sorted = |settings: &Settings| {
        let rules = settings.labelled().map(|rule| rule.to_string());
        rules.collect::<std::collections::BTreeSet<_>>()
    };
    (sorted(&config) != sorted(running)).then_some(path)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::command::live::sample;
    use crate::command::picture::Picture;

    #[test]
    fn the_picture_of_status_is_up_to_date() {
        let mut report = sample::report(60);
        // The last rule is too long for 80 columns.
        report.rules.pop();
        let rules = report.rules.iter();
        let rules = rules.map(|rule| rule.rule.parse().expect("a rule"));
        let settings = Settings {
            rules: rules.collect(),
            ..Settings::default()
        };
        let since = json!({
            "time": "2026-11-28T09:19:27Z", "pid": 801, "uid": 0, "user": "root", "login": "eve",
        });
        let answer = json!({
            "role": "follower", "pid": 812, "version": "0.1.0", "settings": settings,
            "since": since, "changed": since,
        });
        let json = |value| serde_json::from_value::<Map<String, Value>>(value).expect("an object");
        let mut answer = json(answer);
        answer.extend(json(serde_json::to_value(report).expect("JSON")));
        let answer = serde_json::from_value(answer.into()).expect("an answer");
        let status = Status {
            running: true,
            healthy: false,
            faults: &[Fault {
                what: "wg0: tcx ingress portredir_in: missing".to_owned(),
                fix: Some("portredir up".to_owned()),
            }],
            differs_from: None,
            listening: Vec::new(),
            rule_objects: Vec::new(),
            answer: &answer,
        };
        let picture = Picture {
            name: "status",
            test: concat!(module_path!(), "::the_picture_of_status_is_up_to_date"),
            last: "1 fault; show",
        };
        picture.check(|| {
            print!("\x1b[H\x1b[2J");
            print(&text(&status, Header::Shown)).expect("a terminal");
        });
    }
}
