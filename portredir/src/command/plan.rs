//! `portredir plan` and `portredir check`: a look at the plan and at files.

use std::collections::BTreeMap;

use super::{count, print};
use crate::cli::{CheckArgs, PlanArgs};
use crate::config::file;
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::controller::change::{Action, Change, HostView};
use crate::controller::compile;
use crate::host::features::Features;
use crate::host::netlink::Netlink;
use crate::ruleset::history::History;
use crate::state::State;

/// Prints the plan. Then, where an engine is not available, the command fails.
///
/// # Errors
///
/// The settings are impossible, or the state of the host cannot be read.
pub async fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
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
        eprintln!("warning: {lockout}");
    }
    Ok(plan.check()?)
}

/// Checks files, as far as that is possible without the host.
///
/// # Errors
///
/// A file is invalid.
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let settings = file::load(&args.path)?.over(&Settings::default());
    let rules = settings.rules.len();
    // There can be more rules than the maps hold.
    compile(&State::empty(Settings::default()).next(settings, History::default()))?;
    print(&format!("OK: {}\n", count(rules, "rule")))
}
