//! The difference that a change makes, as lines that can be typed; and `portredir diff`, the
//! difference between what runs and a file.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use serde::Serialize;

use super::error::{CommandError, exit_code};
use super::read::print_nothing;
use super::{print, say};
use crate::cli::DiffArgs;
use crate::config::file;
use crate::config::settings::Settings;
use crate::controller::change::Diff;
use crate::controller::status;
use crate::exit::ExitCode;
use crate::rule::object::RuleObject;
use crate::rule::{Labelled, Rule};

/// `portredir diff`.
///
/// # Errors
///
/// The two differ, or cannot be compared.
pub fn diff(args: &DiffArgs) -> anyhow::Result<()> {
    // Exit code 1 means that they differ, and nothing else.
    let differs = compare(args).map_err(|error| match exit_code(&error) {
        ExitCode::Failed => CommandError::NotCompared(error).into(),
        _ => error,
    })?;
    if differs {
        let path = args.config.path.display().to_string();
        return Err(CommandError::Differs { path }.into());
    }
    Ok(())
}

/// Prints the difference; whether there is one.
fn compare(args: &DiffArgs) -> anyhow::Result<bool> {
    let configured = file::load(&args.config.path)?.over(&Settings::default());
    let answer = status::read();
    if args.json {
        print_nothing(&answer)?;
    }
    let difference = Difference::between(&answer?.settings, &configured, &args.config.path);
    if args.json {
        print(&(serde_json::to_string(&difference)? + "\n"))?;
    } else {
        print(&difference.text())?;
        if difference.is_reordered {
            say("the rules are in another order, which decides where several match");
        }
    }
    Ok(!difference.is_equal)
}

/// The object that `diff --json` prints.
#[derive(Serialize)]
struct Difference<'a> {
    schema: u32,
    running: bool,
    path: &'a Path,
    #[serde(rename = "equal")]
    is_equal: bool,
    removed: Vec<RuleObject>,
    added: Vec<RuleObject>,
    relabelled: Vec<Relabelled>,
    /// Whether rules that are in both have another order.
    #[serde(rename = "reordered")]
    is_reordered: bool,
    options: Vec<OptionChange>,
    #[serde(skip)]
    lines: Vec<String>,
}

/// A rule that has another label in the file.
#[derive(Serialize)]
struct Relabelled {
    running: RuleObject,
    configured: RuleObject,
}

/// An option with its value in both; null for one that is off by being left out.
#[derive(Serialize)]
struct OptionChange {
    option: String,
    running: Option<toml::Value>,
    configured: Option<toml::Value>,
}

impl<'a> Difference<'a> {
    fn between(running: &Settings, configured: &Settings, path: &'a Path) -> Self {
        let diff = Diff::between(running, configured);
        let options = OptionChange::all(running, configured);
        let lines: Vec<_> = rules(&diff)
            .chain(options.iter().flat_map(OptionChange::lines))
            .collect();
        let objects = |rules: &[Labelled]| rules.iter().cloned().map(RuleObject::from).collect();
        let is_reordered = order(running, configured) != order(configured, running);
        Self {
            schema: 1,
            running: true,
            path,
            is_equal: lines.is_empty() && !is_reordered,
            removed: objects(&diff.removed),
            added: objects(&diff.added),
            relabelled: diff
                .relabelled
                .iter()
                .map(|(old, new)| Relabelled {
                    running: old.clone().into(),
                    configured: new.clone().into(),
                })
                .collect(),
            is_reordered,
            options,
            lines,
        }
    }

    fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl OptionChange {
    /// The options that differ.
    fn all(running: &Settings, configured: &Settings) -> Vec<Self> {
        let (running, configured) = (file::options(running), file::options(configured));
        let names: BTreeSet<_> = running.keys().chain(configured.keys()).collect();
        let differs = |name: &&&String| running.get(**name) != configured.get(**name);
        let change = |name: &String| Self {
            option: name.clone(),
            running: running.get(name).cloned(),
            configured: configured.get(name).cloned(),
        };
        names
            .iter()
            .filter(differs)
            .map(|name| change(name))
            .collect()
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let line = |sign, value: &Option<toml::Value>| {
            let value = value.as_ref()?;
            Some(format!("{sign} {} = {value}", self.option))
        };
        let lines = [line('-', &self.running), line('+', &self.configured)];
        lines.into_iter().flatten()
    }
}

/// The rules of the first settings that are also in the others.
fn order<'a>(settings: &'a Settings, others: &Settings) -> Vec<&'a Rule> {
    let others: HashSet<_> = others.rules.iter().collect();
    let rules = settings.rules.iter();
    rules.filter(|rule| others.contains(rule)).collect()
}

/// The removed rules, then the added ones, then those with another label, then options: a line
/// each.
#[must_use]
pub fn text(diff: &Diff) -> String {
    let lines = rules(diff).chain(options(diff));
    lines.map(|line| line + "\n").collect()
}

/// A line for each rule; the old text and the new one of a rule with another label.
pub(super) fn rules(diff: &Diff) -> impl Iterator<Item = String> {
    let removed = diff.removed.iter().map(|rule| format!("- {rule}"));
    let added = diff.added.iter().map(|rule| format!("+ {rule}"));
    let relabelled = diff.relabelled.iter();
    let relabelled = relabelled.flat_map(|(old, new)| [format!("- {old}"), format!("+ {new}")]);
    removed.chain(added).chain(relabelled)
}

/// A line for each option that is switched.
pub(super) fn options(diff: &Diff) -> impl Iterator<Item = String> {
    let switched = diff.switched.iter();
    switched.map(|(name, is_on)| format!("{} {name}", if *is_on { '+' } else { '-' }))
}
