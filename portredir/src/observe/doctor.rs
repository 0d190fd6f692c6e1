//! The examination of a redirect and of its host: everything that stands between clients
//! and servers. Nothing is changed.
//!
//! Each check adds findings, or the reason why it cannot be made, or the state that it saw.

mod exact;
mod finding;
mod firewall;
mod host;
mod iptables;
mod ipvs;
mod nft;
mod redirect;
mod ruleset;
mod shared;
mod subject;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;

use portredir_common::net::Version;

pub use self::exact::{Filtered, Seen};
pub use self::finding::{Diagnosis, Finding, Passed, Severity, Unchecked};
use self::firewall::{FIREWALL, REDIRECTS};
use self::ruleset::Ruleset;
pub use self::subject::{Role, Running, State, Subject};
use crate::config::settings::Settings;
use crate::host::features::Loaded;
use crate::host::filters;
use crate::observe::listening::{self, Listeners};
use crate::plan::Attached;
use crate::sys::tool::{self, ToolError};

/// Makes all checks.
#[must_use]
pub fn examine(subject: &Subject<'_>) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let Subject {
        settings,
        state,
        host,
        features,
    } = subject;
    self::host::check(settings, features, &mut diagnosis);
    match state {
        State::Running(running) => {
            redirect::running(running, &mut diagnosis);
            redirect::unregistered(running, &mut diagnosis);
            tables::check(running, settings, &mut diagnosis);
        }
        State::Other => {}
        State::Nothing => match filters::carriers() {
            Ok(interfaces) => redirect::left(&interfaces, &mut diagnosis),
            Err(error) => diagnosis.not_checked("leftovers", error),
        },
    }
    if !settings.rules.is_empty() {
        let interfaces = match state {
            State::Running(running) => running.interfaces.as_slice(),
            State::Other | State::Nothing => &[],
        };
        let attached: BTreeMap<_, _> = interfaces
            .iter()
            .map(|interface| (interface.report.ifindex, Attached::SOMEHOW))
            .collect();
        let plan = host.plan(settings, features, &attached, &Loaded);
        redirect::attached(subject, &plan, &mut diagnosis);
        shared::check(interfaces, &plan, &mut diagnosis);
        self::host::xdp(&plan, features, &mut diagnosis);
        self::host::conntrack(settings, conntrack_count(), &mut diagnosis);
        redirect::dead(&host.dead(&settings.rules, &plan), &mut diagnosis);
        match Listeners::read(&settings.rules) {
            Ok(listeners) => {
                let all = listening::of_rules(&listeners, settings, host);
                redirect::listening(&all, &mut diagnosis);
            }
            Err(error) => diagnosis.not_checked("listeners", error),
        }
        let rulesets = rulesets(&mut diagnosis);
        firewall::check(&rulesets, settings, &mut diagnosis);
        // Without IPVS there is no such file.
        if let Ok(services) = fs::read_to_string("/proc/thread-self/net/ip_vs") {
            ipvs::check(&ipvs::parse(&services), settings, &mut diagnosis);
        }
        diagnosis.pass(FIREWALL, "no rule drops clients");
        diagnosis.pass(REDIRECTS, "no rule of another tool redirects these ports");
    }
    diagnosis.findings.sort_by_key(|finding| finding.severity);
    diagnosis
}

/// The findings about packet filters alone, for rules that are to run.
#[must_use]
pub fn packet_filters(settings: &Settings) -> Vec<Finding> {
    let mut diagnosis = Diagnosis::default();
    let rulesets = rulesets(&mut diagnosis);
    firewall::check(&rulesets, settings, &mut diagnosis);
    diagnosis.findings
}

/// The rules of all packet filters, as far as they can be read.
#[derive(Clone, Debug)]
pub struct Rulesets {
    rulesets: Vec<Ruleset>,
    /// The reasons why some are not known.
    pub unread: Vec<String>,
}

impl Rulesets {
    /// Reads the rules of all packet filters.
    #[must_use]
    pub fn read() -> Self {
        let mut diagnosis = Diagnosis::default();
        let rulesets = rulesets(&mut diagnosis);
        let unread = diagnosis.unchecked.into_iter();
        let unread = unread.filter(|unchecked| unchecked.check == FIREWALL);
        Self {
            rulesets,
            unread: unread.map(|unchecked| unchecked.why).collect(),
        }
    }
}

/// The verdicts of packet filters on one packet, up to the first one that ends its way.
#[must_use]
pub fn filtered(rulesets: &Rulesets, seen: &Seen<'_>) -> Vec<Filtered> {
    exact::way(&rulesets.rulesets, seen)
}

/// The rules of all packet filters that can be read.
fn rulesets(diagnosis: &mut Diagnosis) -> Vec<Ruleset> {
    let mut rulesets = Vec::new();
    let mut not_checked = |error: String| {
        diagnosis.not_checked(FIREWALL, &error);
        diagnosis.not_checked(REDIRECTS, error);
    };
    let saved = [
        ("iptables-save", Version::V4),
        ("ip6tables-save", Version::V6),
    ];
    let mut has_iptables = true;
    for (program, version) in saved {
        match tool::output(program, &[]) {
            Ok(text) => rulesets.push(iptables::parse(&text, version)),
            Err(ToolError::Missing(_)) => has_iptables = false,
            Err(error) => not_checked(format!("{program}: {error}")),
        }
    }
    if !has_iptables && has_legacy_tables() {
        not_checked("there are iptables rules, but iptables-save is not installed".to_owned());
    }
    let json = tool::output("nft", &["-j", "list", "ruleset"]);
    let text = tool::output("nft", &["-a", "list", "ruleset"]);
    match json.map(|json| nft::parse(&json, text.as_deref().unwrap_or_default())) {
        Ok(Ok(mut ruleset)) => {
            // The tables of iptables-nft are nftables, too; their own tool knows them better.
            ruleset.chains.retain(|chain| {
                let mut known = rulesets.iter().flat_map(|ruleset| &ruleset.chains);
                !known.any(|other| (&other.table, &other.name) == (&chain.table, &chain.name))
            });
            rulesets.push(ruleset);
        }
        Ok(Err(error)) => not_checked(format!("nft: {error}")),
        Err(ToolError::NotPermitted) => not_checked("nft needs root".to_owned()),
        Err(error) => not_checked(error.to_string()),
    }
    rulesets
}

/// The number of connections that the kernel tracks in this network namespace.
fn conntrack_count() -> io::Result<String> {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")
}

/// Whether the kernel has tables of the older iptables in this network namespace.
fn has_legacy_tables() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|name| {
        let path = format!("/proc/thread-self/net/{name}");
        fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty())
    })
}
