//! Turns the command line into the variants and the traffic that compares them.

use anyhow::bail;
use clap::ValueEnum;

use crate::bench::measure::{Effort, Role};
use crate::bench::traffic::{Protocol, Traffic};
use crate::bench::variant::{Subject, Variant};
use crate::cli::{BenchArgs, Opponent, Suite, Topology};
use crate::config::engine::EngineChoice;

/// The work of a benchmark.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The variants to compare.
    pub variants: Vec<Variant>,
    /// The other redirectors, also for measurements without traffic.
    pub opponents: Vec<Opponent>,
    /// The suites to run, in this order.
    pub suites: Vec<Suite>,
    /// The largest number of rules of a variant.
    pub most_rules: u16,
    /// Whether the benchmark may take its time.
    pub is_full: bool,
    /// Whether a socket sends packets of UDP.
    pub is_raw: bool,
}

/// The suites of `--quick`.
const QUICK_SUITES: [Suite; 3] = [Suite::Rr, Suite::Crr, Suite::Udp];
const QUICK_OPPONENTS: [Opponent; 3] =
    [Opponent::IptablesLegacy, Opponent::NftMap, Opponent::Nginx];

/// The suites of `--full`.
const FULL_SUITES: [Suite; 8] = [
    Suite::Rr,
    Suite::Crr,
    Suite::Udp,
    Suite::UdpNew,
    Suite::Bulk,
    Suite::ProgRun,
    Suite::Load,
    Suite::Memory,
];
const FULL_ENGINES: [EngineChoice; 5] = [
    EngineChoice::Auto,
    EngineChoice::Xdp,
    EngineChoice::Tc,
    EngineChoice::Socket,
    EngineChoice::XdpGeneric,
];
const FULL_RULES: [u16; 4] = [1, 100, 1000, 10_000];

/// The lists of the command line, or what stands in their place.
struct Choice {
    suites: Vec<Suite>,
    opponents: Vec<Opponent>,
    engines: Vec<EngineChoice>,
    rules: Vec<u16>,
}

impl Choice {
    fn of(args: &BenchArgs) -> Self {
        let (topology, is_full) = (args.topology, args.full);
        let suites = || {
            let all: &[Suite] = if is_full { &FULL_SUITES } else { &QUICK_SUITES };
            let fits = |suite: &Suite| is_measured(*suite, topology);
            all.iter().copied().filter(fits).collect()
        };
        let opponents = || {
            let all: &[Opponent] = if is_full {
                &Opponent::ALL
            } else {
                &QUICK_OPPONENTS
            };
            let fits = |opponent: &Opponent| opponent.fits(topology);
            all.iter().copied().filter(fits).collect()
        };
        let engines = || match topology {
            Topology::Host if is_full => FULL_ENGINES.to_vec(),
            Topology::Host | Topology::Local => vec![EngineChoice::Auto],
            Topology::Forward => vec![EngineChoice::Tc],
        };
        let rules = || {
            let all: &[u16] = if is_full && topology == Topology::Host {
                &FULL_RULES
            } else {
                &FULL_RULES[..1]
            };
            all.to_vec()
        };
        Self {
            suites: args.tests.clone().unwrap_or_else(suites),
            opponents: args.against.clone().unwrap_or_else(opponents),
            engines: args.engine.clone().unwrap_or_else(engines),
            rules: args.rules.clone().unwrap_or_else(rules),
        }
    }
}

/// Checks that all of it has a meaning in the topology.
fn check(suites: &[Suite], opponents: &[Opponent], topology: Topology) -> anyhow::Result<()> {
    if let Some(suite) = suites.iter().find(|suite| !is_measured(**suite, topology)) {
        bail!(
            "{} is not measured with --topology {}; leave it out of --tests",
            name_of(suite),
            name_of(&topology)
        );
    }
    if let Some(opponent) = opponents.iter().find(|opponent| !opponent.fits(topology)) {
        bail!(
            "{} is not compared with --topology {}; leave it out of --against",
            opponent.name(),
            name_of(&topology)
        );
    }
    Ok(())
}

impl Plan {
    /// Makes the plan that the arguments ask for.
    ///
    /// # Errors
    ///
    /// When something that was asked for cannot be measured in the topology.
    pub fn of(args: &BenchArgs) -> anyhow::Result<Self> {
        let Choice {
            mut suites,
            opponents,
            engines,
            rules,
        } = Choice::of(args);
        let (topology, is_full) = (args.topology, args.full);
        suites.dedup();
        check(&suites, &opponents, topology)?;
        if topology != Topology::Host && rules != [1] {
            bail!("--rules is about --topology host; leave it out");
        }
        let most_rules = rules.iter().copied().max().unwrap_or(1);
        let mut plan = Self {
            variants: Vec::new(),
            opponents: opponents
                .into_iter()
                .filter(|opponent| *opponent != Opponent::None)
                .collect(),
            suites,
            most_rules,
            is_full,
            is_raw: args.raw_socket,
        };
        if plan.traffic().next().is_some() {
            plan.choose(&engines, &rules);
        }
        for variant in &mut plan.variants {
            variant.topology = topology;
        }
        Ok(plan)
    }

    /// All traffic, in order.
    pub fn traffic(&self) -> impl Iterator<Item = Traffic> {
        self.suites
            .iter()
            .flat_map(|suite| suite.traffic().iter().copied())
    }

    fn choose(&mut self, engines: &[EngineChoice], rules: &[u16]) {
        let mut variants = vec![Variant::of(Subject::Direct)];
        let twins = if self.is_full { 2..=4 } else { 2..=3 };
        variants.extend(twins.map(|number| Variant::of(Subject::DirectAgain(number))));
        let opponents = &self.opponents;
        let subjects = engines.iter().map(|engine| Subject::Ours(*engine));
        let subjects: Vec<_> = subjects
            .chain(opponents.iter().map(|opponent| Subject::Against(*opponent)))
            .collect();
        variants.extend(subjects.iter().map(|subject| Variant::of(*subject)));
        for &rules in rules.iter().filter(|rules| **rules > 1) {
            for &subject in &subjects {
                variants.extend(self.with_rules(subject, rules, engines));
            }
        }
        if self.is_full {
            let tracked = |subject: &Subject| match subject {
                Subject::Direct | Subject::Ours(_) => true,
                Subject::Against(opponent) => reference(opponents) == Some(*opponent),
                Subject::DirectAgain(_) => false,
            };
            let subjects = std::iter::once(Subject::Direct).chain(subjects);
            variants.extend(subjects.filter(tracked).map(|subject| Variant {
                has_conntrack: true,
                ..Variant::of(subject)
            }));
        }
        self.variants = variants;
    }

    /// Rules of one protocol slow down no other, but a list of both would be twice as
    /// long for programs that walk it. portredir does not walk it.
    fn with_rules(&self, subject: Subject, rules: u16, engines: &[EngineChoice]) -> Vec<Variant> {
        let variant = Variant {
            rules,
            ..Variant::of(subject)
        };
        let walks = match subject {
            Subject::Ours(engine) => {
                // One engine shows the figures in between.
                let is_shown = rules == self.most_rules || Some(&engine) == engines.first();
                return is_shown.then_some(variant).into_iter().collect();
            }
            Subject::Against(Opponent::IptablesLegacy | Opponent::IptablesNft) => true,
            Subject::Against(opponent) if opponent.has_rules() => false,
            _ => return Vec::new(),
        };
        if !walks {
            return vec![variant];
        }
        [
            (Traffic::Crr, Protocol::Tcp),
            (Traffic::UdpNew, Protocol::Udp),
        ]
        .into_iter()
        .filter(|(traffic, _)| self.traffic().any(|chosen| chosen == *traffic))
        .map(|(_, protocol)| Variant {
            fillers: Some(protocol),
            ..variant
        })
        .collect()
    }

    /// Whether a variant takes part in a test.
    #[must_use]
    pub fn takes_part(&self, variant: &Variant, traffic: Traffic) -> bool {
        let protocol = traffic.protocol();
        let has_protocol = protocol == Protocol::Tcp || variant.has_udp();
        let is_bulk = matches!(traffic, Traffic::Upload | Traffic::Download);
        let is_ours = matches!(variant.subject, Subject::Ours(_));
        let has_rules = variant.rules == 1
            || traffic.begins_flows()
            || (is_ours && variant.rules == self.most_rules);
        has_protocol
            && has_rules
            && variant.fillers.is_none_or(|fillers| fillers == protocol)
            && !(variant.has_conntrack && is_bulk)
    }

    /// The amount of measurements of this traffic.
    #[must_use]
    pub const fn effort(&self, traffic: Traffic) -> Effort {
        let cycles = match traffic {
            Traffic::Rr | Traffic::Crr if self.is_full => 80,
            _ => 40,
        };
        Effort {
            cycles,
            repetitions: if self.is_full { 3 } else { 2 },
        }
    }

    /// The role of a variant in the comparison.
    #[must_use]
    pub fn role(&self, variant: &Variant) -> Role {
        match variant.subject {
            Subject::Direct if variant.has_conntrack => Role::Other,
            Subject::Direct => Role::Direct,
            Subject::DirectAgain(_) => Role::DirectAgain,
            Subject::Ours(_) => Role::Ours,
            Subject::Against(opponent) if reference(&self.opponents) == Some(opponent) => {
                Role::Reference
            }
            Subject::Against(_) => Role::Other,
        }
    }
}

/// Whether a suite has a meaning in a topology.
const fn is_measured(suite: Suite, topology: Topology) -> bool {
    match topology {
        Topology::Host => true,
        Topology::Forward => matches!(
            suite,
            Suite::Rr | Suite::Crr | Suite::Udp | Suite::UdpNew | Suite::Bulk
        ),
        // Packets of UDP are made by the kernel, and not by a process of the host.
        Topology::Local => matches!(suite, Suite::Rr | Suite::Crr | Suite::Bulk),
    }
}

fn name_of(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The opponent that portredir is compared with first.
fn reference(opponents: &[Opponent]) -> Option<Opponent> {
    [
        Opponent::IptablesLegacy,
        Opponent::IptablesNft,
        Opponent::NftMap,
    ]
    .into_iter()
    .find(|opponent| opponents.contains(opponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn plan(args: &[&str]) -> Plan {
        let words = ["portredir", "bench"].iter().chain(args);
        let cli = crate::cli::Cli::try_parse_from(words).expect("right arguments");
        match cli.command {
            Some(crate::cli::Command::Bench(args)) => Plan::of(&args).expect("a plan"),
            other => panic!("{other:?}"),
        }
    }

    fn names(plan: &Plan, traffic: Traffic) -> Vec<String> {
        let variants = plan.variants.iter();
        variants
            .filter(|variant| plan.takes_part(variant, traffic))
            .map(Variant::name)
            .collect()
    }

    #[test]
    fn quick_is_the_common_case() {
        let plan = plan(&[]);
        assert_eq!(plan.suites, QUICK_SUITES);
        assert_eq!(
            names(&plan, Traffic::Rr).join("; "),
            "direct; direct 2; direct 3; portredir auto; iptables-legacy; nft-map; nginx"
        );
        assert_eq!(
            names(&plan, Traffic::Udp).join("; "),
            "direct; direct 2; direct 3; portredir auto; iptables-legacy; nft-map"
        );
    }

    #[test]
    fn full_has_everything() {
        let plan = plan(&["--full"]);
        assert!(plan.variants.len() < 60, "{}", plan.variants.len());
        let crr = names(&plan, Traffic::Crr);
        for name in [
            "portredir xdp, 10000 rules",
            "iptables-legacy, 100 rules",
            "nft-map, 1000 rules",
            "direct, conntrack",
            "portredir socket, conntrack",
            "iptables-legacy, conntrack",
            "socat",
        ] {
            assert!(crr.iter().any(|other| other == name), "{name} in {crr:?}");
        }
        let rr = names(&plan, Traffic::Rr);
        assert!(
            rr.contains(&"portredir tc, 10000 rules".to_owned()),
            "{rr:?}"
        );
        assert!(
            !rr.contains(&"iptables-legacy, 10000 rules".to_owned()),
            "{rr:?}"
        );
        let new = names(&plan, Traffic::UdpNew);
        assert_eq!(
            new.iter()
                .filter(|name| *name == "iptables-nft, 1000 rules")
                .count(),
            1
        );
        let bulk = names(&plan, Traffic::Upload);
        assert!(
            bulk.iter().all(|name| !name.contains("conntrack")),
            "{bulk:?}"
        );
    }

    #[test]
    fn a_user_chooses() {
        let plan = plan(&[
            "--tests",
            "udp-new",
            "--against",
            "iptables-nft",
            "--engine",
            "tc,xdp",
            "--rules",
            "10000",
        ]);
        assert_eq!(
            names(&plan, Traffic::UdpNew).join("; "),
            "direct; direct 2; direct 3; portredir tc; portredir xdp; iptables-nft; \
             portredir tc, 10000 rules; portredir xdp, 10000 rules; iptables-nft, 10000 rules"
        );
        let reference = plan
            .variants
            .iter()
            .find(|variant| plan.role(variant) == Role::Reference);
        assert_eq!(
            reference.map(Variant::name).as_deref(),
            Some("iptables-nft")
        );
    }

    #[test]
    fn without_traffic_there_is_nobody() {
        assert!(plan(&["--tests", "prog-run"]).variants.is_empty());
        let alone = plan(&["--against", "none"]);
        assert_eq!(
            names(&alone, Traffic::Rr),
            ["direct", "direct 2", "direct 3", "portredir auto"]
        );
    }
}
