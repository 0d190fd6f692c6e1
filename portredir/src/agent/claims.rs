//! Conflicts: a port that several rules want belongs to the older one.
//!
//! A conflict is what the compiler of rules refuses: a rule that could never match. So an
//! exception beside a wider rule is none.

use std::collections::{BTreeMap, HashMap};

use super::reason::{Reason, Rejection};
use crate::rule::{Label, Origin, Rule, Sourced};
use crate::ruleset::shadow::{self, ConflictError, MAX_RULES};

/// One rule of the API with what it stands for, which is in force as a whole or not at all.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The words for the owner of the rule, as in "rule web of PortRedirect ingress".
    pub owner: String,
    /// The rules of portredir.
    pub rules: Vec<Rule>,
}

/// The claims that are refused, by their place in the list. Fixed rules come before all
/// claims, and earlier claims before later ones.
#[must_use]
pub fn refused(fixed: &[Rule], claims: &[Claim]) -> BTreeMap<usize, Rejection> {
    let mut court = Court {
        fixed,
        claims,
        refused: equal_claims(claims),
    };
    court.refuse_surplus();
    // Refusing one claim never brings a conflict among those before it.
    let mut good = 0;
    while court.conflict(claims.len()).is_some() {
        let (mut low, mut high) = (good, claims.len());
        while low + 1 < high {
            let middle = low.midpoint(high);
            if court.conflict(middle).is_some() {
                high = middle;
            } else {
                low = middle;
            }
        }
        // The fixed rules have no conflict, so a claim has to give way.
        let loser = high.saturating_sub(1);
        let Some(conflict) = court.conflict(high) else {
            break;
        };
        if court.refused.contains_key(&loser) {
            break;
        }
        let rejection = court.rejection(loser, &conflict);
        court.refused.insert(loser, rejection);
        good = loser;
    }
    court.refused
}

/// The claims that want exactly what an earlier claim of one rule has, which spares the
/// comparison of all with all.
fn equal_claims(claims: &[Claim]) -> BTreeMap<usize, Rejection> {
    let mut owners = HashMap::<String, usize>::new();
    let mut refused = BTreeMap::new();
    for (i, claim) in claims.iter().enumerate() {
        let keys: Vec<_> = claim.rules.iter().map(Rule::listen_key).collect();
        let taken = keys.iter().zip(&claim.rules);
        let taken = taken.filter_map(|(key, rule)| Some((owners.get(key)?, rule)));
        if let Some((owner, rule)) = taken.min_by_key(|(owner, _)| **owner) {
            let rejection = lost(rule, &claims[*owner].owner);
            refused.insert(i, rejection);
        } else if let [key] = &keys[..] {
            owners.insert(key.clone(), i);
        }
    }
    refused
}

/// The comparison of claims.
struct Court<'a> {
    fixed: &'a [Rule],
    claims: &'a [Claim],
    refused: BTreeMap<usize, Rejection>,
}

impl Court<'_> {
    /// Refuses the claims for which the programs have no room, so that nobody has to look for
    /// conflicts among more.
    fn refuse_surplus(&mut self) {
        let mut left = MAX_RULES.saturating_sub(self.fixed.len());
        for (i, claim) in self.claims.iter().enumerate() {
            if self.refused.contains_key(&i) {
                continue;
            }
            match left.checked_sub(claim.rules.len()) {
                Some(rest) => left = rest,
                None => {
                    let text =
                        format!("the node has room for {MAX_RULES} rules; older ones have it");
                    let rejection = Rejection::new(Reason::LimitExceeded, text);
                    self.refused.insert(i, rejection);
                }
            }
        }
    }

    /// The first conflict among the fixed rules and the first claims.
    fn conflict(&self, count: usize) -> Option<ConflictError> {
        let fixed = self.fixed.iter().cloned().map(Sourced::running);
        let claims = self.claims[..count].iter().enumerate();
        let claims = claims.filter(|(i, _)| !self.refused.contains_key(i));
        let claims = claims.flat_map(|(i, claim)| {
            claim.rules.iter().map(move |rule| Sourced {
                rule: rule.clone(),
                label: Label::default(),
                origin: Origin::Argument(i),
            })
        });
        shadow::check(&fixed.chain(claims).collect::<Vec<_>>()).err()
    }

    /// The words for a claim that lost.
    fn rejection(&self, loser: usize, conflict: &ConflictError) -> Rejection {
        match conflict {
            ConflictError::Shadowed { shadowed, by } => {
                let involved = by.iter().chain([shadowed.as_ref()]);
                let winner = involved
                    .map(|sourced| &sourced.origin)
                    .find(|origin| **origin != Origin::Argument(loser));
                lost(&self.rule_in(loser, conflict), &self.owner(winner))
            }
            ConflictError::Twice { first, again } => lost(&again.rule, &self.owner(Some(first))),
            ConflictError::Rules(_) | ConflictError::On(_) => {
                Rejection::new(Reason::LimitExceeded, conflict.to_string())
            }
        }
    }

    /// The rule of the loser that takes part in a conflict.
    fn rule_in(&self, loser: usize, conflict: &ConflictError) -> Rule {
        let involved = match conflict {
            ConflictError::Shadowed { shadowed, by } => {
                [shadowed.as_ref()].into_iter().chain(by).collect()
            }
            _ => Vec::new(),
        };
        let own = |sourced: &&&Sourced| sourced.origin == Origin::Argument(loser);
        let own = involved.iter().find(own);
        own.map_or_else(
            || self.claims[loser].rules[0].clone(),
            |sourced| sourced.rule.clone(),
        )
    }

    fn owner(&self, origin: Option<&Origin>) -> String {
        match origin {
            Some(Origin::Argument(i)) => self.claims[*i].owner.clone(),
            Some(_) => "the configuration of the agent".to_owned(),
            None => "another rule of the same name".to_owned(),
        }
    }
}

fn lost(rule: &Rule, winner: &str) -> Rejection {
    let noun = if rule.ports.is_one() { "port" } else { "ports" };
    Rejection::new(
        Reason::Conflicted,
        format!(
            "{noun} {} belongs to {winner}, which comes first",
            rule.ports
        ),
    )
}
