//! The exit code of an error.

use thiserror::Error;

use super::count;
use crate::config::file::ConfigError;
use crate::controller::error::{ChangeError, ControllerError};
use crate::exit::ExitCode;
use crate::host::preflight::PreflightError;
use crate::import::ImportError;
use crate::loader::pinned::PinnedError;
use crate::loader::trace::TraceError;
use crate::observe::explain::QueryError;
use crate::observe::{connections, trace};
use crate::plan::UsageError;
use crate::rule::{Name, Rule, SourcedError};
use crate::ruleset::shadow::ConflictError;

/// The reason why a command cannot be carried out.
#[derive(Debug, Error)]
pub enum CommandError {
    /// `replace` takes two rules.
    #[error("expected two rules, the running one or its name and the new one, but there is {}; example: portredir replace \
             80:8080 80:9090", count(*.0, "rule"))]
    NotTwo(usize),
    /// A rule to remove or to replace does not run.
    #[error("rule `{rule}` does not exist{}; {hint}", near.as_ref().map_or_else(String::new, |near| format!("; the running rule is `{near}`")))]
    NoRule {
        /// The rule.
        rule: Box<Rule>,
        /// A running rule for the same destination port.
        near: Option<Box<Rule>>,
        /// The next step.
        hint: &'static str,
    },
    /// No running rule has a name.
    #[error("no rule has the name `{name}`; {}; {hint}", names(known))]
    NoName {
        /// The name.
        name: Name,
        /// The names of running rules.
        known: Vec<String>,
        /// The next step.
        hint: &'static str,
    },
    /// A name stands for several rules where one is needed.
    #[error(
        "several rules have the name `{0}`; give the rule itself, as `portredir rules` prints it"
    )]
    SeveralRules(Name),
    /// `up` would remove running rules.
    #[error(
        "`up` replaces the running rules and removes {}: {names}; to keep them, use \
         `portredir add`{}",
        count(*number, "rule"),
        if *is_refused { "; to remove them, add --replace" } else { "" }
    )]
    Losses {
        /// The number of rules.
        number: usize,
        /// The first rules.
        names: String,
        /// Whether nothing is changed.
        is_refused: bool,
    },
    /// The running configuration is not that of a file.
    #[error(
        "the running configuration differs from {path}; to put that in force: portredir up --replace \
         --config {path}"
    )]
    Differs {
        /// The path of the file.
        path: String,
    },
    /// The running configuration cannot be compared with that of a file.
    #[error("compare: {0:#}")]
    NotCompared(anyhow::Error),
    /// A file changes an option that only `up` can change.
    #[error(
        "`{option}` cannot be changed while programs are attached; use: portredir up --config {path}"
    )]
    NeedsUp {
        /// The option.
        option: String,
        /// The path of the file.
        path: String,
    },
    /// `status --check` has found faults.
    #[error("degraded: {}", count(*.0, "fault"))]
    Degraded(usize),
    /// A reload would read standard input again, which has ended.
    #[error(
        "`--follow` reads the configuration again on SIGHUP and needs a file, not `--config -`"
    )]
    FollowsStandardInput,
    /// Lines of standard input are no flows.
    #[error("{} skipped", count(*.0, "line"))]
    Skipped(usize),
    /// Lines of another program have no equivalent.
    #[error("{} not taken over", count(*.0, "line"))]
    NotTakenOver(usize),
    /// The live view needs a terminal.
    #[error("the live view needs a terminal: {0}; print the numbers once with: portredir status")]
    NoTerminal(&'static str),
    /// There is no such man page.
    #[error("there is no man page `{0}`; name a command, or portredir.toml")]
    NoPage(String),
    /// The doctor found something.
    #[error("doctor: {}", count(*.0, "finding"))]
    Findings(usize),
}

/// The names that there are, as a part of a sentence.
fn names(known: &[String]) -> String {
    match known {
        [] => "no running rule has a name".to_owned(),
        known => format!("there is {}", known.join(", ")),
    }
}

impl CommandError {
    /// The exit code for this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotTwo(_)
            | Self::NotCompared(_)
            | Self::FollowsStandardInput
            | Self::Skipped(_)
            | Self::NoTerminal(_)
            | Self::NoPage(_) => ExitCode::Usage,
            Self::NoRule { .. }
            | Self::NoName { .. }
            | Self::SeveralRules(_)
            | Self::NotTakenOver(_)
            | Self::Losses { .. }
            | Self::Differs { .. }
            | Self::NeedsUp { .. } => ExitCode::Failed,
            Self::Degraded(_) | Self::Findings(_) => ExitCode::Degraded,
        }
    }
}

/// The exit code of an error: that of the first error in its chain that has one.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|error| {
        if let Some(error) = error.downcast_ref::<CommandError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<ControllerError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<ChangeError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<PreflightError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<PinnedError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<TraceError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<ConfigError>() {
            return Some(error.exit_code());
        }
        let is_usage = error.is::<UsageError>()
            || error.is::<SourcedError>()
            || error.is::<ConflictError>()
            || error.is::<connections::FilterError>()
            || error.is::<trace::filter::FilterError>()
            || error.is::<ImportError>()
            || error.is::<QueryError>();
        is_usage.then_some(ExitCode::Usage)
    });
    code.unwrap_or(ExitCode::Failed)
}
