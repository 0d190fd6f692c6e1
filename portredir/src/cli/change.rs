//! The commands that change single rules, and what becomes of targets.

use std::time::Duration;

use clap::Args;

use crate::config::safety::ChangeOptions;
use crate::config::value::{self, ValueError};
use crate::ruleset::services::endpoint::Selector;

/// The options of every change.
#[derive(Args, Clone, Copy, Debug)]
pub struct ChangeOptionArgs {
    /// Allow rules for SSH, DHCP and Kubernetes API ports, and for the port of your SSH
    /// session.
    #[arg(long)]
    pub force: bool,

    /// Roll back automatically unless `portredir confirm` follows within TIME, for
    /// example 30s or 5min.
    #[arg(long, value_name = "TIME", value_parser = confirm)]
    pub confirm: Option<Duration>,

    /// Show what would change; change nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

impl From<ChangeOptionArgs> for ChangeOptions {
    fn from(args: ChangeOptionArgs) -> Self {
        let ChangeOptionArgs {
            force,
            confirm,
            dry_run,
        } = args;
        Self {
            force,
            confirm,
            dry_run,
        }
    }
}

/// `portredir add`.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
    /// The rules, in the syntax that `portredir rules` prints.
    #[arg(required = true, value_name = "RULE")]
    pub rules: Vec<String>,

    /// The options of every change.
    #[command(flatten)]
    pub change: ChangeOptionArgs,
}

/// `portredir rm`.
#[derive(Args, Clone, Debug)]
pub struct RmArgs {
    /// The rules and the options of every change.
    #[command(flatten)]
    pub change: ChangeArgs,

    /// Ignore rules that do not run.
    #[arg(long)]
    pub if_exists: bool,
}

/// `portredir replace`.
#[derive(Args, Clone, Debug)]
pub struct ReplaceArgs {
    /// The running rule, then the new one; `from` and `on` belong to the rule before.
    #[arg(required = true, num_args = 2.., value_names = ["OLD", "NEW"])]
    pub rules: Vec<String>,

    /// The options of every change.
    #[command(flatten)]
    pub change: ChangeOptionArgs,
}

/// `portredir drain` and `portredir undrain`.
#[derive(Args, Clone, Copy, Debug)]
pub struct TurnArgs {
    /// The target: 10.0.0.5, 10.0.0.5:8080, 2001:db8::5, or 8080 of this host.
    pub target: Selector,
}

fn confirm(text: &str) -> Result<Duration, ValueError> {
    value::duration(text, 1.0)
}
