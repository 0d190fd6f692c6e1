//! The rules of a packet filter, in one form for nftables and iptables, and the way of a
//! packet through them as far as it can be known.

use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::{Protocol, Version};

use crate::rule::Ports;

/// The name of a protocol behind a port.
#[must_use]
pub const fn name_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// A packet of a new client on another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The IP version.
    pub version: Version,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Holds for these protocols, by name.
    Protocols(Vec<String>),
    /// Holds for destination ports, or for all others.
    DstPorts {
        /// The protocol that the condition names; both without one.
        protocol: Option<Protocol>,
        /// The ports.
        ports: Vec<Ports>,
        /// Whether the condition holds for all others.
        is_negated: bool,
    },
    /// Holds for one IP version.
    Version(Version),
    /// Holds for packets that come in on some interfaces.
    Interface(String),
    /// Holds for forwarded packets that leave by some interfaces.
    Egress(String),
    /// Holds for kinds of destinations, or for all others.
    DstType {
        /// The kinds, as `local` and `unicast`.
        names: Vec<String>,
        /// Whether the condition holds for all others.
        is_negated: bool,
    },
    /// Holds for addresses of one IP version, or for all others of this version.
    Addrs {
        /// Whether the source is meant.
        is_source: bool,
        /// The networks, at least one.
        nets: Vec<IpNet>,
        /// Whether the condition holds for all others.
        is_negated: bool,
    },
    /// Holds for source ports, or for all others.
    SrcPorts {
        /// The ports.
        ports: Vec<Ports>,
        /// Whether the condition holds for all others.
        is_negated: bool,
    },
    /// Holds for some clients, by rate or in another way that a packet does not show.
    Clients,
    /// Never holds for a new client on another host.
    Never,
    /// The condition is not understood.
    Unknown(String),
}

/// The work of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet leaves the chain, and goes on.
    Accept,
    /// The packet is dropped, in silence or with an answer.
    Drop,
    /// The packet goes to another chain and comes back.
    Jump(String),
    /// The packet goes to another chain for good.
    Goto(String),
    /// The packet goes back.
    Return,
    /// The packet goes to another port or host.
    Redirect(String),
    /// The packet gets another source address.
    Translate,
    /// Nothing, such as counting.
    Continue,
    /// The verdict is not understood.
    Unknown(String),
}

/// A rule of a packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetRule {
    /// The conditions, which hold together.
    pub conditions: Vec<Condition>,
    /// The verdict.
    pub verdict: Verdict,
    /// The rule as its tool prints it.
    pub text: String,
    /// The command that deletes the rule.
    pub delete: String,
}

/// The place where the kernel enters a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The hook, as nftables names it.
    pub hook: String,
    /// Whether the chain translates addresses.
    pub is_nat: bool,
    /// The order among the chains of a hook.
    pub priority: i64,
    /// Whether packets without a verdict are dropped.
    pub drops: bool,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The table, as `inet filter`.
    pub table: String,
    /// The name.
    pub name: String,
    /// The hook; `None` for a chain that others jump to.
    pub base: Option<Base>,
    /// The rules, in order.
    pub rules: Vec<NetRule>,
    /// The program that changes the chain.
    pub tool: &'static str,
}

impl Chain {
    /// The chain in a sentence.
    #[must_use]
    pub fn place(&self) -> String {
        format!("chain {} of table {}", self.name, self.table)
    }

    /// The command that accepts ports before all other rules of this chain.
    #[must_use]
    pub fn accept(&self, protocol: Protocol, ports: &[u16]) -> String {
        let (tool, name, protocol) = (self.tool, &self.name, name_of(protocol));
        let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
        let is_one = ports.len() == 1;
        if tool == "nft" {
            let table = &self.table;
            let ports = ports.join(", ");
            let ports = if is_one {
                ports
            } else {
                format!("{{ {ports} }}")
            };
            return format!("nft insert rule {table} {name} {protocol} dport {ports} accept");
        }
        let table = self.table.rsplit(' ').next().unwrap_or_default();
        let option = if is_one {
            "--dport"
        } else {
            "-m multiport --dports"
        };
        let ports = ports.join(",");
        format!("{tool} -t {table} -I {name} -p {protocol} {option} {ports} -j ACCEPT")
    }

    /// The commands that accept packets to one address and port, and replies, before all
    /// other rules of this chain.
    #[must_use]
    pub fn accept_to(&self, protocol: Protocol, (addr, port): (IpAddr, u16)) -> String {
        let (tool, name, protocol) = (self.tool, &self.name, name_of(protocol));
        if tool == "nft" {
            let family = if addr.is_ipv4() { "ip" } else { "ip6" };
            let begin = format!("nft insert rule {} {name}", self.table);
            return format!(
                "{begin} {family} daddr {addr} {protocol} dport {port} accept && {begin} ct state \
                 established,related accept"
            );
        }
        let table = self.table.rsplit(' ').next().unwrap_or_default();
        let begin = format!("{tool} -t {table} -I {name}");
        format!(
            "{begin} -d {addr} -p {protocol} --dport {port} -j ACCEPT && {begin} -m conntrack \
             --ctstate ESTABLISHED,RELATED -j ACCEPT"
        )
    }

    /// Whether the table is one of frames that bridges pass on, or of ARP.
    #[must_use]
    pub fn is_of_links(&self) -> bool {
        matches!(self.table.split(' ').next(), Some("bridge" | "arp"))
    }

    /// Whether packets of an IP version enter the table.
    #[must_use]
    pub fn takes(&self, version: Version) -> bool {
        match self.table.split(' ').next() {
            Some("ip") => version == Version::V4,
            Some("ip6") => version == Version::V6,
            _ => true,
        }
    }
}

/// All chains of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The chains.
    pub chains: Vec<Chain>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// Never.
    No,
    /// For some clients, or nobody knows.
    Maybe,
    /// For all clients.
    Yes,
}

impl Condition {
    /// Whether the condition holds for a packet.
    #[must_use]
    pub fn holds(&self, probe: Probe) -> Holds {
        let is_it = |yes| if yes { Holds::Yes } else { Holds::No };
        match self {
            Self::Protocols(names) => {
                let name = name_of(probe.protocol);
                is_it(names.iter().any(|other| other == name))
            }
            Self::DstPorts {
                protocol,
                ports,
                is_negated,
            } => {
                let is_protocol = protocol.is_none_or(|protocol| protocol == probe.protocol);
                let is_among = ports.iter().any(|range| has(*range, probe.port));
                is_it(is_protocol && is_among != *is_negated)
            }
            Self::Version(version) => is_it(*version == probe.version),
            Self::DstType { names, is_negated } => {
                is_it(names.iter().any(|name| name == "local") != *is_negated)
            }
            // A packet for this host leaves by no interface.
            Self::Never | Self::Egress(_) => Holds::No,
            Self::Interface(_)
            | Self::Addrs { .. }
            | Self::SrcPorts { .. }
            | Self::Clients
            | Self::Unknown(_) => Holds::Maybe,
        }
    }
}

impl NetRule {
    /// Whether all conditions hold for a packet.
    #[must_use]
    pub fn holds(&self, probe: Probe) -> Holds {
        let each = self
            .conditions
            .iter()
            .map(|condition| condition.holds(probe));
        each.min().unwrap_or(Holds::Yes)
    }

    /// Whether the rule is about a port in particular.
    #[must_use]
    pub fn names(&self, probe: Probe) -> bool {
        let names = |condition: &Condition| {
            matches!(
                condition,
                Condition::DstPorts {
                    is_negated: false,
                    ..
                }
            ) && condition.holds(probe) == Holds::Yes
        };
        self.conditions.iter().any(names)
    }

    /// The ports that the rule is about.
    pub fn ports(&self) -> impl Iterator<Item = Ports> {
        let ports = self.conditions.iter().map(|condition| match condition {
            Condition::DstPorts { ports, .. } => ports.as_slice(),
            _ => &[],
        });
        ports.flatten().copied()
    }

    /// The interfaces that the rule is limited to, if nothing else limits it.
    #[must_use]
    pub fn only_interface(&self, probe: Probe) -> Option<&str> {
        let mut interface = None;
        for condition in &self.conditions {
            match (condition, condition.holds(probe)) {
                (Condition::Interface(name), _) => interface = Some(name.as_str()),
                (_, Holds::Yes) => {}
                _ => return None,
            }
        }
        interface
    }
}

const fn has(range: Ports, port: u16) -> bool {
    range.first <= port && port <= range.last
}

/// The end of a packet in one base chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate<'a> {
    /// The chain and the rule that certainly end the way. Without a rule the policy does.
    pub end: Option<(&'a Chain, Option<&'a NetRule>)>,
    /// Whether the packet is dropped there.
    pub is_dropped: bool,
    /// Whether some rule before the end accepts some clients.
    pub some_accepted: bool,
    /// The rules before the end that drop packets of some clients.
    pub some_dropped: Vec<(&'a Chain, &'a NetRule)>,
    /// The rules on the way that redirect the packet, perhaps.
    pub redirected: Vec<(&'a Chain, &'a NetRule)>,
    /// The rules on the way that translate the source, perhaps.
    pub translated: Vec<(&'a Chain, &'a NetRule)>,
    /// The rules on the way that nobody understands here.
    pub unknown: Vec<(&'a Chain, &'a NetRule)>,
}

impl<'a> Fate<'a> {
    /// A rule that ends the way, surely or for some packets.
    fn meet(&mut self, (chain, rule): (&'a Chain, &'a NetRule), is_sure: bool) {
        let is_unknown = |condition| matches!(condition, &Condition::Unknown(_));
        if !is_sure && rule.conditions.iter().any(is_unknown) {
            self.unknown.push((chain, rule));
        }
        match &rule.verdict {
            Verdict::Accept => self.some_accepted |= !is_sure,
            Verdict::Drop if !is_sure => self.some_dropped.push((chain, rule)),
            Verdict::Redirect(_) => self.redirected.push((chain, rule)),
            Verdict::Translate => self.translated.push((chain, rule)),
            Verdict::Unknown(_) => {
                self.unknown.push((chain, rule));
                // It may accept.
                self.some_accepted = true;
                return;
            }
            _ => {}
        }
        if is_sure {
            self.end = Some((chain, Some(rule)));
            self.is_dropped = rule.verdict == Verdict::Drop;
        }
    }
}

/// The way out of a chain.
enum Flow {
    Ended,
    Returned,
}

impl Ruleset {
    /// The chains that the kernel enters at some hooks, in the order of priority.
    #[must_use]
    pub fn bases(&self, hooks: &[&str]) -> Vec<&Chain> {
        let is_there = |chain: &&Chain| {
            let base = chain.base.as_ref();
            base.is_some_and(|base| hooks.contains(&base.hook.as_str()))
        };
        let mut bases: Vec<_> = self.chains.iter().filter(is_there).collect();
        bases.sort_by_key(|chain| chain.base.as_ref().map(|base| base.priority));
        bases
    }

    /// The way of a packet through a base chain.
    #[must_use]
    pub fn fate<'a>(&'a self, chain: &'a Chain, probe: Probe) -> Fate<'a> {
        let mut fate = Fate::default();
        let flow = self.walk(
            chain,
            &mut Walk { probe, depth: 0 },
            (Holds::Yes, &mut fate),
        );
        if matches!(flow, Flow::Returned) {
            fate.end = Some((chain, None));
            fate.is_dropped = chain.base.as_ref().is_some_and(|base| base.drops);
        }
        fate
    }

    fn walk<'a>(
        &'a self,
        chain: &'a Chain,
        walk: &mut Walk,
        (reached, fate): (Holds, &mut Fate<'a>),
    ) -> Flow {
        for rule in &chain.rules {
            let holds = rule.holds(walk.probe);
            if holds == Holds::No {
                continue;
            }
            let is_sure = holds.min(reached) == Holds::Yes;
            match &rule.verdict {
                Verdict::Jump(name) | Verdict::Goto(name) => {
                    let next = self.chain(&chain.table, name);
                    let Some(next) = next.filter(|_| walk.depth < Walk::DEEPEST) else {
                        continue;
                    };
                    walk.depth += 1;
                    let flow = self.walk(next, walk, (holds.min(reached), &mut *fate));
                    walk.depth -= 1;
                    let is_goto = matches!(rule.verdict, Verdict::Goto(_));
                    match flow {
                        Flow::Ended if holds == Holds::Yes => return Flow::Ended,
                        Flow::Returned if is_goto && holds == Holds::Yes => return Flow::Returned,
                        Flow::Ended | Flow::Returned => {}
                    }
                }
                Verdict::Return if holds == Holds::Yes => return Flow::Returned,
                Verdict::Return | Verdict::Continue => {}
                _ => {
                    fate.meet((chain, rule), is_sure);
                    if holds == Holds::Yes && !matches!(rule.verdict, Verdict::Unknown(_)) {
                        return Flow::Ended;
                    }
                }
            }
        }
        Flow::Returned
    }

    /// The rules that packets can meet which enter at some hooks.
    #[must_use]
    pub fn reachable(&self, hooks: &[&str]) -> Vec<(&Chain, &NetRule)> {
        let mut chains = self.bases(hooks);
        let mut next = 0;
        while let Some(chain) = chains.get(next).copied() {
            next += 1;
            for rule in &chain.rules {
                if let Verdict::Jump(name) | Verdict::Goto(name) = &rule.verdict
                    && let Some(other) = self.chain(&chain.table, name)
                    && !chains.iter().any(|known| std::ptr::eq(*known, other))
                {
                    chains.push(other);
                }
            }
        }
        let rules = chains.into_iter();
        rules
            .flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)))
            .collect()
    }

    fn chain(&self, table: &str, name: &str) -> Option<&Chain> {
        let mut chains = self.chains.iter();
        chains.find(|chain| chain.table == table && chain.name == name)
    }
}

/// The packet, and how many chains it is in.
struct Walk {
    probe: Probe,
    depth: usize,
}

impl Walk {
    /// The kernel allows 16 levels, `NFT_JUMP_STACK_SIZE`.
    const DEEPEST: usize = 16;
}
