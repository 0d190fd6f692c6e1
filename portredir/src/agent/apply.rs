//! Puts the rules of a pass in force: one change of the whole rule set, as `portredir apply`
//! makes it. A rule that this node refuses does not hold up the others.

use std::collections::HashSet;

use super::desired::{Desired, RuleOutcome};
use super::reason::{Reason, Rejection};
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::controller::change::{Action, Change};
use crate::controller::check_limits;
use crate::controller::error::{ChangeError, ControllerError};
use crate::controller::event::Event;
use crate::controller::transaction::Transaction;
use crate::loader::chain;
use crate::rule::Rule;

/// The agent allows a port or not before this, by the `force` of each object.
const OPTIONS: ChangeOptions = ChangeOptions {
    force: true,
    confirm: None,
    dry_run: false,
};

/// Puts the rules in force, behind those of the configuration. Rules that this node refuses
/// are taken back in `desired`. Returns the rules that are in force.
///
/// # Errors
///
/// [`ControllerError`]: nothing has changed.
pub async fn apply(
    fixed: &[Rule],
    desired: &mut Desired,
    mut on_event: fn(Event),
) -> Result<Vec<Rule>, ControllerError> {
    let transaction = Transaction::begin(&mut on_event).await?;
    let running = transaction.settings()?.clone();
    let settings = |desired: &Desired| Settings {
        rules: fixed.iter().cloned().chain(desired.rules()).collect(),
        ..running.clone()
    };
    let plan = |settings: Settings| {
        let change = transaction.plan(Action::Follow(settings), OPTIONS)?;
        change.check()?;
        Ok(change)
    };
    let judge = Judge {
        settings: &settings,
        plan: &plan,
    };
    if settings(desired).rules == running.rules {
        return Ok(running.rules);
    }
    let change = judge.change(&running.rules, desired)?;
    let rules = change.settings().rules.clone();
    if rules == running.rules {
        return Ok(rules);
    }
    let locked = transaction.apply(change, &mut on_event).await?;
    drop(locked.release());
    Ok(rules)
}

/// The search for the rules that this node refuses.
struct Judge<'a> {
    settings: &'a dyn Fn(&Desired) -> Settings,
    plan: &'a dyn Fn(Settings) -> Result<Change, ChangeError>,
}

impl Judge<'_> {
    /// The change to all rules, or to all but those that are refused.
    fn change(&self, running: &[Rule], desired: &mut Desired) -> Result<Change, ControllerError> {
        let running: HashSet<_> = running.iter().cloned().collect();
        self.fit(&running, desired);
        let refusal = match (self.plan)((self.settings)(desired)) {
            Ok(change) => return Ok(change),
            // It is for all rules, and passes.
            Err(error @ ChangeError::Pending(_)) => return Err(error.into()),
            Err(error) => error,
        };
        let old = only(desired, |outcome| is_old(&running, outcome));
        if (self.plan)((self.settings)(&old)).is_err() {
            return Err(refusal.into());
        }
        for (i, outcome) in desired.outcomes_mut().enumerate() {
            if outcome.rules.is_empty() || is_old(&running, outcome) {
                continue;
            }
            let alone = with(&old, i, outcome);
            if let Err(error) = (self.plan)((self.settings)(&alone)) {
                outcome.reject(Rejection::new(Reason::EngineFailed, chain(&error)));
            }
        }
        Ok((self.plan)((self.settings)(desired))?)
    }

    /// Takes back the youngest new rules, until the rest fits into the maps.
    fn fit(&self, running: &HashSet<Rule>, desired: &mut Desired) {
        let Err(error) = check_limits(&(self.settings)(desired)) else {
            return;
        };
        let is_new = |outcome: &RuleOutcome| !is_old(running, outcome);
        let count = desired.outcomes().filter(|outcome| is_new(outcome)).count();
        let (mut fits, mut many) = (0, count);
        while fits + 1 < many {
            let middle = fits.midpoint(many);
            if check_limits(&(self.settings)(&first(desired, running, middle))).is_ok() {
                fits = middle;
            } else {
                many = middle;
            }
        }
        let text = chain(&error);
        let new = desired.outcomes_mut().filter(|outcome| is_new(outcome));
        for outcome in new.skip(fits) {
            outcome.reject(Rejection::new(Reason::LimitExceeded, text.clone()));
        }
    }
}

/// Whether all of a rule is in force already.
fn is_old(running: &HashSet<Rule>, outcome: &RuleOutcome) -> bool {
    outcome.rules.iter().all(|rule| running.contains(rule))
}

/// A copy that keeps some of the rules.
fn only(desired: &Desired, mut keeps: impl FnMut(&RuleOutcome) -> bool) -> Desired {
    let mut copy = desired.clone();
    for outcome in copy.outcomes_mut() {
        if !keeps(outcome) {
            outcome.rules.clear();
        }
    }
    copy
}

/// A copy with the rules of one more outcome.
fn with(old: &Desired, place: usize, outcome: &RuleOutcome) -> Desired {
    let mut copy = old.clone();
    if let Some(empty) = copy.outcomes_mut().nth(place) {
        empty.rules.clone_from(&outcome.rules);
    }
    copy
}

/// A copy with the rules that run, and the first of those that do not.
fn first(desired: &Desired, running: &HashSet<Rule>, count: usize) -> Desired {
    let mut left = count;
    only(desired, |outcome| {
        if is_old(running, outcome) {
            return true;
        }
        let is_among = left > 0;
        left = left.saturating_sub(1);
        is_among
    })
}
