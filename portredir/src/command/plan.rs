//! `portredir plan` and `portredir check`: what would be done.

use std::collections::BTreeMap;

use super::{count, print};
use crate::cli::{CheckArgs, PlanArgs};
use crate::config::file;
use crate::config::settings::Settings;
use crate::controller::change::HostView;
use crate::controller::compile;
use crate::host::features::Features;
use crate::host::netlink::Netlink;
use crate::plan::lockout;
use crate::ruleset::history::History;
use crate::state::State;

/// Prints the plan. Where an engine is not available the command fails after that.
///
/// # Errors
///
/// The settings are impossible, or the host cannot be asked.
pub async fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
    let snapshot = Netlink::open()?.snapshot().await?;
    snapshot.check(&settings)?;
    let host = HostView {
        snapshot,
        features: Features::read(settings.cgroup.as_deref()),
        attached: BTreeMap::new(),
    };
    let plan = host.plan(&settings);
    let text = if args.json {
        serde_json::to_string(&plan.report())? + "\n"
    } else {
        plan.to_string()
    };
    print(&text)?;
    for lockout in lockout::findings(&settings.rules, settings.hide_target) {
        eprintln!("warning: {lockout}");
    }
    Ok(plan.check()?)
}

/// Checks files, as far as that is possible without the host.
///
/// # Errors
///
/// What is wrong with them.
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let settings = file::load(&args.path)?.over(&Settings::default());
    let rules = settings.rules.len();
    // There can be more of them than the maps hold.
    compile(&State::empty(Settings::default()).next(settings, History::default()))?;
    print(&format!("OK: {}\n", count(rules, "rule")))
}
