//! Packet filters that drop or redirect the packets of rules, or no longer see them.

use std::collections::BTreeMap;

use portredir_common::net::{Port, Protocol, Version};

use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::host::packet_filter::ruleset::{Chain, Fate, NetRule, Probe, Ruleset, Verdict};
use crate::observe::listening::name_of;
use crate::plan::finding::{Diagnosis, Severity};
use crate::rule::{Ports, Rule};

/// The name of the check for firewalls.
pub const FIREWALL: &str = "firewall";
/// The name of the check for other redirects.
pub const REDIRECTS: &str = "other-redirects";

/// The hooks that packets for this host pass.
const INCOMING: [&str; 3] = ["ingress", "prerouting", "input"];

/// Clients of a rule, as a packet filter meets them.
#[derive(Clone, Debug)]
struct Watched {
    rule: String,
    protocol: Protocol,
    dst: u16,
    target: u16,
    versions: Vec<Version>,
    /// Whether packets are redirected before a packet filter sees them.
    is_before: bool,
}

impl Watched {
    /// The port that a packet filter sees.
    const fn seen(&self) -> u16 {
        if self.is_before {
            self.target
        } else {
            self.dst
        }
    }

    const fn probe(&self, version: Version, port: u16) -> Probe {
        Probe {
            version,
            protocol: self.protocol,
            port,
        }
    }
}

/// A way in which a rule of a packet filter concerns a redirect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// All packets are dropped.
    Drops,
    /// Packets on one interface are dropped.
    DropsOn(String),
    /// Some clients pass, while all of them pass to the destination port.
    DropsSome,
    /// The rule names the destination port, and sees the target port.
    Misses,
    /// The rule redirects the destination port.
    RedirectsDst,
    /// The rule redirects the target port.
    RedirectsTarget,
}

/// One effect on the ports of many rules.
struct Concern<'a> {
    /// The chain that the kernel enters.
    base: &'a Chain,
    chain: &'a Chain,
    rule: Option<&'a NetRule>,
    watched: Vec<Watched>,
}

/// Effects by kind and by the rule that has them.
type Concerns<'a> = BTreeMap<(Effect, String), Concern<'a>>;

/// Looks for rules that concern the redirect.
pub fn check(rulesets: &[Ruleset], settings: &Settings, diagnosis: &mut Diagnosis) {
    let mut concerns = Concerns::new();
    let mut unknown = BTreeMap::new();
    for ruleset in rulesets {
        let named: Vec<_> = ruleset
            .chains
            .iter()
            .flat_map(|chain| &chain.rules)
            .collect();
        let named: Vec<_> = named.iter().flat_map(|rule| rule.ports()).collect();
        let watched: Vec<_> = settings
            .rules
            .iter()
            .flat_map(|rule| watched(rule, settings, &named))
            .collect();
        for chain in ruleset.bases(&["ingress", "prerouting", "input", "output"]) {
            for watched in &watched {
                for version in watched.versions.iter().filter(|v| chain.takes(**v)) {
                    let mut look = Look {
                        ruleset,
                        chain,
                        concerns: &mut concerns,
                    };
                    let seen = look.visit(watched, *version);
                    for (chain, rule) in seen.unknown {
                        unknown.insert(rule.text.clone(), chain.place());
                    }
                }
            }
        }
        missed(ruleset, &watched, &mut concerns);
    }
    for ((effect, _), concern) in concerns {
        let (check, severity, parts) = concern.text(&effect);
        diagnosis.find(check, severity, parts);
    }
    for (text, place) in unknown.into_iter().take(5) {
        diagnosis.not_checked(FIREWALL, format!("not evaluated: `{text}` in {place}"));
    }
}

/// The ports of a rule at which a packet filter may decide differently.
fn watched(rule: &Rule, settings: &Settings, named: &[Ports]) -> Vec<Watched> {
    /// Rules of a packet filter seldom name more ports of one range.
    const MOST: usize = 64;
    let is_before = settings.engine != EngineChoice::Socket;
    // Packets of local clients come in on lo, which firewalls let in.
    let is_local = rule.addr.is_some_and(|addr| addr.is_loopback())
        || rule.from.is_some_and(|from| from.addr().is_loopback())
        || (!rule.on.is_empty() && rule.on.iter().all(|name| name == "lo"));
    let Some(target) = rule.here().filter(|_| !is_local) else {
        return Vec::new();
    };
    let versions = [Version::V4, Version::V6].into_iter().filter(|version| {
        let is_v4 = *version == Version::V4;
        rule.addr.is_none_or(|addr| addr.is_ipv4() == is_v4)
            && rule.from.is_none_or(|from| from.addr().is_ipv4() == is_v4)
    });
    let versions: Vec<_> = versions.collect();
    let mut dsts = Vec::new();
    for stretch in rule.stretches() {
        let edges = named
            .iter()
            .flat_map(|ports| [Some(ports.first), ports.last.checked_add(1)])
            .flatten();
        let is_range = !target.is_one();
        let edges = edges.flat_map(|edge| {
            // A range of target ports has its edges, too.
            let shifted = u16::try_from(
                i32::from(edge) - i32::from(target.first) + i32::from(rule.ports.first),
            );
            [Some(edge), shifted.ok().filter(|_| is_range)]
        });
        let within = |port: &u16| stretch.contains(Port::new(*port));
        dsts.push(stretch.first);
        dsts.extend(edges.flatten().filter(within));
    }
    dsts.sort_unstable();
    dsts.dedup();
    dsts.truncate(MOST);
    let each = rule.protocols.each().iter();
    each.flat_map(|&protocol| {
        dsts.iter().map({
            let versions = &versions;
            move |&dst| {
                let target = rule.target_of(Port::new(dst)).map_or(dst, Port::get);
                Watched {
                    rule: rule.to_string(),
                    protocol,
                    dst,
                    target,
                    versions: versions.clone(),
                    is_before,
                }
            }
        })
    })
    .collect()
}

/// A look at one base chain.
struct Look<'a, 'b> {
    ruleset: &'a Ruleset,
    chain: &'a Chain,
    concerns: &'b mut Concerns<'a>,
}

impl<'a> Look<'a, '_> {
    /// Sends the packets of a rule through the chain.
    fn visit(&mut self, watched: &Watched, version: Version) -> Fate<'a> {
        let fate = |port| self.ruleset.fate(self.chain, watched.probe(version, port));
        let seen = fate(watched.seen());
        let base = self.chain.base.as_ref();
        if base.is_some_and(|base| base.is_nat) {
            let targets = fate(watched.target).redirected;
            let dsts = fate(watched.dst).redirected;
            self.add_all(&Effect::RedirectsDst, &dsts, watched);
            // With the last engine the packet keeps its port.
            let targets = if watched.is_before {
                targets
            } else {
                Vec::new()
            };
            self.add_all(&Effect::RedirectsTarget, &targets, watched);
            return seen;
        }
        if base.is_some_and(|base| base.hook == "output") {
            return Fate::default();
        }
        if let (Some((chain, rule)), true) = (seen.end, seen.is_dropped) {
            if !seen.some_accepted {
                self.add(Effect::Drops, (chain, rule), watched);
            } else if watched.is_before && !fate(watched.dst).is_dropped {
                self.add(Effect::DropsSome, (chain, rule), watched);
            }
        }
        let probe = watched.probe(version, watched.seen());
        for (chain, rule) in &seen.some_dropped {
            let on = rule.only_interface(probe).filter(|_| rule.names(probe));
            if let Some(on) = on {
                let effect = Effect::DropsOn(on.to_owned());
                self.add(effect, (chain, Some(rule)), watched);
            }
        }
        seen
    }

    fn add_all(&mut self, effect: &Effect, rules: &[(&'a Chain, &'a NetRule)], watched: &Watched) {
        for (chain, rule) in rules {
            self.add(effect.clone(), (chain, Some(rule)), watched);
        }
    }

    fn add(
        &mut self,
        effect: Effect,
        (chain, rule): (&'a Chain, Option<&'a NetRule>),
        watched: &Watched,
    ) {
        let concern = add(self.concerns, effect, (chain, rule), watched);
        concern.base = self.chain;
    }
}

fn add<'a, 'b>(
    concerns: &'b mut Concerns<'a>,
    effect: Effect,
    (chain, rule): (&'a Chain, Option<&'a NetRule>),
    watched: &Watched,
) -> &'b mut Concern<'a> {
    let text = rule.map_or("policy", |rule| rule.text.as_str());
    let key = (effect, format!("{} {text}", chain.place()));
    let concern = concerns.entry(key).or_insert_with(|| Concern {
        base: chain,
        chain,
        rule,
        watched: Vec::new(),
    });
    let is_same = |other: &Watched| {
        (other.protocol, other.dst, other.target) == (watched.protocol, watched.dst, watched.target)
    };
    if !concern.watched.iter().any(is_same) {
        concern.watched.push(watched.clone());
    }
    concern
}

/// The rules that drop packets to destination ports, and see target ports instead.
fn missed<'a>(ruleset: &'a Ruleset, all: &[Watched], concerns: &mut Concerns<'a>) {
    for (chain, rule) in ruleset.reachable(&INCOMING) {
        if rule.verdict != Verdict::Drop {
            continue;
        }
        for watched in all.iter().filter(|watched| watched.is_before) {
            let versions = || watched.versions.iter().filter(|v| chain.takes(**v));
            let is_about =
                |port| versions().any(|version| rule.names(watched.probe(*version, port)));
            if is_about(watched.dst) && !is_about(watched.target) {
                add(concerns, Effect::Misses, (chain, Some(rule)), watched);
            }
        }
    }
}

impl Concern<'_> {
    /// The ports, the first few of them.
    fn ports(&self, port: impl Fn(&Watched) -> u16) -> String {
        const MOST: usize = 4;
        let mut ports: Vec<_> = self
            .watched
            .iter()
            .map(|watched| (port(watched), name_of(watched.protocol)))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        let shown = ports.iter().take(MOST);
        let shown: Vec<_> = shown.map(|(port, name)| format!("{port}/{name}")).collect();
        let more = match ports.len().saturating_sub(MOST) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        shown.join(", ") + &more
    }

    /// The ports of the first protocol that the packet filter sees: as many as one rule of
    /// iptables takes.
    fn seen(&self) -> Vec<u16> {
        const MOST: usize = 15;
        let protocol = self.watched[0].protocol;
        let same = self.watched.iter().filter(|w| w.protocol == protocol);
        let mut ports: Vec<_> = same.map(Watched::seen).collect();
        ports.sort_unstable();
        ports.dedup();
        ports.truncate(MOST);
        ports
    }

    /// The finding: its check and weight; fact, reason and cure.
    fn text(&self, effect: &Effect) -> (&'static str, Severity, [String; 3]) {
        let place = self.chain.place();
        let first = &self.watched[0];
        let by = self.rule.map_or_else(
            || format!("the policy of {place}"),
            |rule| format!("`{}` in {place}", rule.text),
        );
        let delete = self.rule.map_or("", |rule| rule.delete.as_str());
        let accept = self.base.accept(first.protocol, &self.seen());
        let (dsts, targets) = (self.ports(|w| w.dst), self.ports(|w| w.target));
        let seen = self.ports(Watched::seen);
        let sees = if first.is_before {
            format!("the firewall sees clients of {dsts} on {targets}")
        } else {
            format!("the firewall sees clients of {dsts} before they are redirected")
        };
        let remove = format!("{delete}; or: portredir rm '{}'", first.rule);
        match effect {
            Effect::Drops => {
                let what = format!("{by} drops {seen}");
                let why = format!("{sees}, and lets none of them in");
                (FIREWALL, Severity::Error, [what, why, accept])
            }
            Effect::DropsOn(interface) => {
                let what = format!("{by} drops {seen} on {interface}");
                let why = format!("{sees}, and lets none of {interface} in");
                (FIREWALL, Severity::Error, [what, why, accept])
            }
            Effect::DropsSome => {
                let what = format!("{by} drops {seen} of some clients, and {dsts} of none");
                (FIREWALL, Severity::Warning, [what, sees, accept])
            }
            Effect::Misses => {
                let what = format!("{by} is meant for {dsts} and does not see these packets now");
                let why = format!("{sees}; clients that it keeps out come in");
                let fix = format!(
                    "add the rule for {targets}, too; or, for TCP: portredir up --engine socket '{}'",
                    first.rule
                );
                (FIREWALL, Severity::Warning, [what, why, fix])
            }
            Effect::RedirectsDst => {
                let what = format!("{by} redirects {dsts}, too");
                let why = if first.is_before {
                    "portredir comes first, so that rule gets no clients from outside"
                } else {
                    "that rule comes first, so portredir gets no clients from outside"
                };
                let why = why.to_owned();
                (REDIRECTS, Severity::Warning, [what, why, remove])
            }
            Effect::RedirectsTarget => {
                let what = format!("{by} redirects {targets}");
                let why = format!("clients of {dsts} end there, and not at a server of this host");
                (REDIRECTS, Severity::Note, [what, why, remove])
            }
        }
    }
}
