//! `portredir plan` and `portredir check`: a look at the plan and at files.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{check_limits, count, listening, print, say};
use crate::cli::{CheckArgs, PlanArgs};
use crate::config::file::{self, ConfigError};
use crate::config::options;
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::controller::change::{Action, Change, HostView};
use crate::host::netlink::Netlink;
use crate::observe::listening::Listening;
use crate::observe::table::Header;
use crate::plan::way::report::WaysReport;
use crate::plan::{PlanReport, dead, lockout};
use crate::rule::object::RuleObject;

/// Prints the plan. Then, where an engine is not available, the command fails.
///
/// # Errors
///
/// The settings are impossible, or the state of the host cannot be read.
pub async fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
    check_limits(&settings)?;
    let snapshot = Netlink::open()?.snapshot().await?;
    let host = HostView::new(snapshot, &settings, BTreeMap::new());
    // A plan shows what `--force` would allow, and warns.
    let options = ChangeOptions {
        force: true,
        ..ChangeOptions::default()
    };
    let change = Change::plan(None, (Action::Run(settings), options), host)?;
    let plan = change.plan_of_interfaces().expect("a run attaches");
    let listening = listening::of_change(&change);
    let text = if args.json {
        let report = Planned {
            plan: plan.report(),
            rule_objects: change.settings().labelled().map(RuleObject::from).collect(),
            listening,
            ways: change.ways().report(),
        };
        serde_json::to_string(&report)? + "\n"
    } else {
        let text = plan.to_string();
        let has_table = !plan.report().interfaces.is_empty();
        let header = Header::from(args.table);
        let lines =
            if has_table { header } else { Header::Shown }.lines(text.split_inclusive('\n'));
        lines.collect::<String>() + &change.ways().to_string() + &listening::text(&listening)
    };
    print(&text)?;
    listening::say_packet_filters(change.settings());
    for lockout in change.lockouts() {
        say(&format!("warning: {lockout}"));
    }
    plan.check()?;
    Ok(change.ways().check()?)
}

/// The object that `plan --json` prints.
#[derive(Serialize)]
struct Planned<'a> {
    #[serde(flatten)]
    plan: PlanReport<'a>,
    rule_objects: Vec<RuleObject>,
    listening: Vec<Listening>,
    ways: WaysReport<'a>,
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
    for rule in dead::never_local(&settings) {
        say(&format!("warning: {rule}"));
    }
    print(&format!("OK: {}\n", count(rules, "rule")))
}
