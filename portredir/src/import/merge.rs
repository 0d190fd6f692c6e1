//! Makes one list of rules from redirects: duplicates for other chains and IP versions become
//! one rule, and what earlier lines hide is left out.

use portredir_common::net::Version;

use super::found::{Found, Imported, Note, Refused};
use super::redirect::{Clients, Redirect};
use crate::rule::{Label, Labelled, Protocols, Rule, Sourced};
use crate::ruleset::shadow;

/// A rule, and where it came from.
struct Entry {
    rule: Rule,
    label: Label,
    line: String,
    clients: Clients,
    versions: Vec<Version>,
}

/// Merges redirects into rules.
pub(super) fn merge(found: Found) -> Imported {
    let Found {
        redirects,
        refused,
        notes,
    } = found;
    let mut imported = Imported {
        rules: Vec::new(),
        refused,
        notes,
    };
    let mut entries = Vec::<Entry>::new();
    let (local, others): (Vec<_>, Vec<_>) = redirects
        .into_iter()
        .partition(|redirect| redirect.clients == Clients::Local);
    for redirect in others.iter().chain(&local) {
        match redirect.rules() {
            Ok(rules) => {
                for rule in rules {
                    take(&mut entries, rule, redirect, &mut imported);
                }
            }
            Err(why) => imported.refuse(&redirect.line, why),
        }
    }
    note(&entries, &mut imported);
    let mut rules = Vec::new();
    for entry in pairs(entries) {
        let new = Labelled {
            rule: entry.rule,
            label: entry.label,
        };
        rules.push(Sourced::running(new.clone()));
        match shadow::check(&rules) {
            Ok(()) => imported.rules.push(new),
            Err(error) => {
                rules.pop();
                imported.refuse(&entry.line, error.to_string());
            }
        }
    }
    imported
}

impl Imported {
    fn refuse(&mut self, line: &str, why: impl Into<String>) {
        let (line, why) = (line.to_owned(), why.into());
        self.refused.push(Refused { line, why });
    }
}

/// Adds a rule, unless another line says the same or hides it.
fn take(entries: &mut Vec<Entry>, rule: Labelled, redirect: &Redirect, imported: &mut Imported) {
    let Labelled { mut rule, label } = rule;
    if let Some(same) = entries.iter_mut().find(|entry| entry.rule == rule) {
        same.versions.extend(redirect.version);
        if redirect.clients != same.clients {
            same.clients = Clients::All;
        }
        return;
    }
    if redirect.clients == Clients::Local {
        if !rule.on.is_empty() {
            imported.refuse(
                &redirect.line,
                "packets of this host come in on no interface",
            );
            return;
        }
        rule.on = vec!["lo".to_owned()];
    }
    let is_first =
        |entry: &&Entry| entry.clients != Clients::Local && takes_all(&entry.rule, &rule);
    if let Some(first) = entries.iter().find(is_first) {
        let why = format!("an earlier line takes all its packets: {}", first.line);
        imported.refuse(&redirect.line, why);
        return;
    }
    if entries.iter().any(|entry| meets(&entry.rule, &rule)) {
        imported.notes.insert(Note::Specific);
    }
    entries.push(Entry {
        rule,
        label,
        line: redirect.line.clone(),
        clients: redirect.clients,
        versions: redirect.version.into_iter().collect(),
    });
}

/// Notes what the rules do beyond the lines.
fn note(entries: &[Entry], imported: &mut Imported) {
    let is_open = |entry: &Entry| entry.rule.addr.is_none() && entry.rule.from.is_none();
    for entry in entries {
        let has = |version| entry.versions.contains(&version);
        if is_open(entry) && has(Version::V4) != has(Version::V6) && entry.rule.forward().is_none()
        {
            imported.notes.insert(Note::BothVersions);
        }
        if entry.clients == Clients::Remote && entry.rule.on.is_empty() && entry.rule.from.is_none()
        {
            imported.notes.insert(Note::LocalClients);
        }
    }
}

/// Joins rules for TCP with those for UDP that are equal but for that.
fn pairs(entries: Vec<Entry>) -> Vec<Entry> {
    let mut joined = Vec::<Entry>::new();
    for entry in entries {
        let is_pair = |other: &&mut Entry| {
            let protocols = [other.rule.protocols, entry.rule.protocols];
            let is_other = matches!(
                protocols,
                [Protocols::Tcp, Protocols::Udp] | [Protocols::Udp, Protocols::Tcp]
            );
            let rule = Rule {
                protocols: other.rule.protocols,
                ..entry.rule.clone()
            };
            is_other && rule == other.rule && entry.label == other.label
        };
        match joined.iter_mut().find(is_pair) {
            Some(other) => other.rule.protocols = Protocols::Both,
            None => joined.push(entry),
        }
    }
    joined
}

/// Whether every packet of one rule is one of another.
fn takes_all(all: &Rule, rule: &Rule) -> bool {
    let mut protocols = rule.protocols.each().iter();
    protocols.all(|protocol| all.protocols.each().contains(protocol))
        && all.ports.first <= rule.ports.first
        && rule.ports.last <= all.ports.last
        && all.addr.is_none_or(|addr| rule.addr == Some(addr))
        && all
            .from
            .is_none_or(|net| rule.from.is_some_and(|from| net.contains(&from)))
        && (all.on.is_empty() || all.on == rule.on)
}

/// Whether some packets are those of both rules, as far as ports and protocols tell.
fn meets(one: &Rule, other: &Rule) -> bool {
    let mut protocols = one.protocols.each().iter();
    protocols.any(|protocol| other.protocols.each().contains(protocol))
        && one.ports.first <= other.ports.last
        && other.ports.first <= one.ports.last
}
