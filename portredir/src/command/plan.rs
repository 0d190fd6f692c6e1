//! `portredir plan` and `portredir check`: a look at the plan and at files.

use std::collections::BTreeMap;

use super::{check_limits, count, print, say};
use crate::cli::{CheckArgs, PlanArgs};
use crate::config::file::{self, ConfigError};
use crate::config::options;
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::controller::change::{Action, Change, HostView};
use crate::host::features::Features;
use crate::host::netlink::Netlink;
use crate::plan::lockout;

/// Prints the plan. Then, where an engine is not available, the command fails.
///
/// # Errors
///
/// The settings are impossible, or the state of the host cannot be read.
pub async fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
    check_limits(&settings)?;
    let snapshot = Netlink::open()?.snapshot().await?;
    let host = HostView {
        snapshot,
        features: Features::read(settings.cgroup.path()),
        attached: BTreeMap::new(),
    };
    // A plan shows what `--force` would allow, and warns.
    let options = ChangeOptions {
        force: true,
        ..ChangeOptions::default()
    };
    let change = Change::plan(None, (Action::Run(settings), options), host)?;
    let plan = change.plan_of_interfaces().expect("a run attaches");
    let text = if args.json {
        serde_json::to_string(&plan.report())? + "\n"
    } else {
        plan.to_string()
    };
    print(&text)?;
    for lockout in change.lockouts() {
        say(&format!("warning: {lockout}"));
    }
    Ok(plan.check()?)
}

/// Checks files, as far as that is possible without the host.
///
/// # Errors
///
/// A file is invalid.
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let is_named = options::named_by_environment().is_some_and(|path| path == args.path);
    let config = file::load(&args.path).map_err(|error| match error {
        error if is_named => ConfigError::Variable(Box::new(error)),
        error => error,
    });
    let settings = config?.over(&Settings::default());
    let rules = settings.rules.len();
    let lockouts = lockout::findings(&settings.rules, settings.hide_target);
    check_limits(&settings)?;
    for lockout in lockouts {
        say(&format!("warning: {lockout}"));
    }
    print(&format!("OK: {}\n", count(rules, "rule")))
}
