//! The one list of options. The command line, the environment, the keys of files, the
//! defaults, the state, and the effects of a change all come from this list.

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::engine::EngineChoice;
use super::selection::Selection;
use super::table::RuleTable;
use super::value::{CgroupDir, DrainTimeout, FlowCount, ForwardBy, MetricsAddr};
use crate::rule::{Labelled, Labels, Rule, Sourced};

/// Makes [`Options`], where each option may be given or not, and [`Settings`],
/// where each has its value.
///
/// An entry is the help text, the attributes for clap and for the state, the name, type and
/// default, and the work that a change of it needs: `attach` programs anew; `switch`, a bool, or
/// `keep`, neither of which touches what is attached.
macro_rules! options {
    ($(
        $(#[doc = $doc:literal])+
        $(#[arg($($arg:tt)*)])+
        $(#[serde($($serde:tt)*)])*
        $name:ident: $type:ty = $default:expr, $takes:ident;
    )+) => {
        /// The options that were given by the command line, the environment or a file.
        #[derive(clap::Args, Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Options {
            $(
                $(#[doc = $doc])+
                $(#[arg($($arg)*)])+
                pub $name: Option<$type>,
            )+
            /// The rules of a file, with their places in it.
            #[arg(skip)]
            pub(super) rules: Vec<Spanned<String>>,
            /// The tables of rules of a file, with their places in it.
            #[arg(skip)]
            pub(super) rule: Vec<Spanned<RuleTable>>,
        }

        /// All settings that are fixed when redirecting begins.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Settings {
            $(
                $(#[doc = $doc])+
                $(#[serde($($serde)*)])*
                pub $name: $type,
            )+
            /// The rules, in order.
            pub rules: Vec<Rule>,
            /// The labels of the rules.
            #[serde(skip_serializing_if = "Labels::is_empty")]
            pub labels: Labels,
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($name: $default,)+ rules: Vec::new(), labels: Labels::default() }
            }
        }

        impl Options {
            /// The options that are given, else those of `base`, with the rules of
            /// `base`.
            #[must_use]
            pub fn over(&self, base: &Settings) -> Settings {
                Settings {
                    $($name: self.$name.clone().unwrap_or_else(|| base.$name.clone()),)+
                    rules: base.rules.clone(),
                    labels: base.labels.clone(),
                }
            }

            /// The options that `later` gives, else those that `self` gives.
            #[must_use]
            pub fn and(self, later: Self) -> Self {
                Self {
                    $($name: later.$name.or(self.$name),)+
                    rules: self.rules.into_iter().chain(later.rules).collect(),
                    rule: self.rule.into_iter().chain(later.rule).collect(),
                }
            }
        }

        impl Settings {
            /// The options that differ, by the names that users type, and the work that a
            /// change of each needs.
            #[must_use]
            pub fn differences(&self, other: &Self) -> Vec<(String, Takes)> {
                let mut differences = Vec::new();
                $(
                    if self.$name != other.$name {
                        let name = stringify!($name).replace('_', "-");
                        differences.push((name, takes!($takes, other.$name)));
                    }
                )+
                differences
            }
        }
    };
}

macro_rules! takes {
    (attach, $value:expr) => {
        Takes::Attach
    };
    (switch, $value:expr) => {
        Takes::Switch($value)
    };
    (keep, $value:expr) => {
        Takes::Nothing
    };
}

/// The work that a change of an option needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Programs have to be attached anew.
    Attach,
    /// The rules are compiled anew, with the option on or off.
    Switch(bool),
    /// Nothing; the option is read when it is needed.
    Nothing,
}

options! {
    /// Interfaces: `all`, names, globs and !exclusions [default: all].
    ///
    /// Commas separate them. `eth0,wg*` selects eth0 and every interface whose name begins with wg, also one
    /// that appears later. `!docker0` selects every interface except docker0. An
    /// exclusion takes precedence over a name. A named interface may appear later.
    ///
    /// Only what comes in on these interfaces is redirected. A reply is restored on whichever
    /// interface it leaves, except on one that is excluded.
    #[arg(short, long, value_name = "NAME,…", env = "PORTREDIR_IFACE", hide_env = true)]
    iface: Selection = Selection::all(), attach;

    /// Engine: auto, xdp, tc, socket or xdp-generic [default: auto].
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        env = "PORTREDIR_ENGINE",
        hide_env = true
    )]
    engine: EngineChoice = EngineChoice::default(), attach;

    /// Do not redirect local clients (locally generated traffic).
    #[arg(
        long,
        env = "PORTREDIR_NO_LOCAL",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    no_local: bool = false, attach;

    /// Answer other hosts at target ports as if these were closed.
    ///
    /// Servers on target ports can still begin conversations with other hosts.
    #[arg(
        long,
        env = "PORTREDIR_HIDE_TARGET",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    hide_target: bool = false, switch;

    /// Redirect only while a process listens on the target port.
    ///
    /// Otherwise the packet is not redirected.
    #[arg(
        long,
        env = "PORTREDIR_IF_LISTENING",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    if_listening: bool = false, switch;

    /// With `--engine socket`: also deliver to servers that listen only on 127.0.0.1 or ::1.
    ///
    /// The target ports of rules then become reachable from other hosts, even where the
    /// server listens only on a loopback address.
    #[arg(
        long,
        env = "PORTREDIR_ALLOW_LOOPBACK_TARGET",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    allow_loopback_target: bool = false, attach;

    /// Limit the redirection of local clients to processes in this cgroup v2 directory.
    ///
    /// Default: the root of the hierarchy, and so every process.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    #[arg(env = "PORTREDIR_CGROUP", hide_env = true)]
    cgroup: CgroupDir = CgroupDir::default(), attach;

    /// Way of packets to targets with an address: stack [default: stack].
    ///
    /// The kernel routes them, and a firewall sees them in FORWARD.
    #[arg(long, value_name = "WAY", hide_short_help = true)]
    #[arg(env = "PORTREDIR_FORWARD", hide_env = true)]
    #[serde(skip_serializing_if = "ForwardBy::is_usual")]
    forward: ForwardBy = ForwardBy::default(), attach;

    /// Switch forwarding on for the interfaces that targets with an address need, until `down`.
    ///
    /// This host then forwards everything that comes in by these interfaces, as far as its
    /// firewall lets it. `down` puts back what was off. Without this option such targets are
    /// refused where forwarding is off.
    #[arg(
        long,
        env = "PORTREDIR_ENABLE_FORWARDING",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    enable_forwarding: bool = false, attach;

    /// How long to wait for redirected connections when stopping [default: 10s].
    ///
    /// Meanwhile new connections are not redirected. A second Ctrl-C stops waiting.
    #[arg(long, value_name = "TIME", hide_short_help = true)]
    #[arg(env = "PORTREDIR_DRAIN_TIMEOUT", hide_env = true)]
    drain_timeout: DrainTimeout = DrainTimeout(std::time::Duration::from_secs(10)), keep;

    /// Size of the table of TCP flows, which also holds direct connections to target
    /// ports; 32 bytes of kernel memory per entry [default: 262144].
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[arg(env = "PORTREDIR_MAX_TCP_FLOWS", hide_env = true)]
    max_tcp_flows: FlowCount = FlowCount::fixed(262_144), attach;

    /// Size of the table of UDP flows, and of the table of TCP flows that are not yet
    /// accepted; 32 bytes of kernel memory per entry in each, and 80 for the ends of a UDP
    /// flow [default: 65536].
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[arg(env = "PORTREDIR_MAX_UDP_FLOWS", hide_env = true)]
    max_udp_flows: FlowCount = FlowCount::fixed(65_536), attach;

    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics while redirecting
    /// [default: off].
    ///
    /// Everybody who can connect to the address can read them. Example: 127.0.0.1:9474.
    #[arg(long, value_name = "ADDR:PORT", hide_short_help = true)]
    #[arg(env = "PORTREDIR_METRICS", hide_env = true)]
    #[serde(skip_serializing_if = "MetricsAddr::is_off")]
    metrics: MetricsAddr = MetricsAddr::default(), keep;
}

impl Settings {
    /// These options with other rules, and the labels of those.
    #[must_use]
    pub fn with_rules(&self, rules: impl IntoIterator<Item = Sourced>) -> Self {
        let mut settings = Self {
            rules: Vec::new(),
            labels: Labels::default(),
            ..self.clone()
        };
        for Sourced { rule, label, .. } in rules {
            settings.labels.set(&rule, label);
            settings.rules.push(rule);
        }
        settings
    }

    /// The rules with their labels.
    pub fn labelled(&self) -> impl Iterator<Item = Labelled> {
        self.rules.iter().map(|rule| self.labels.label(rule))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The state that an older program pinned has these keys.
    #[test]
    fn settings_of_an_older_program_are_read() {
        let json = r#"{"iface":"eth0","engine":"tc-clsact","no-local":true,
            "allow-loopback-target":false,"cgroup":null,"hide-target":true,
            "if-listening":false,"max-tcp-flows":2048,"max-udp-flows":1024,
            "drain-timeout":2.5,"rules":["80:8080"]}"#;
        let settings: Settings = serde_json::from_str(json).expect("settings");
        let again = serde_json::to_value(&settings).expect("JSON");
        assert_eq!(again, serde_json::from_str::<Value>(json).expect("JSON"));
        let fewer: Settings = serde_json::from_str(r#"{"no-local":true}"#).expect("settings");
        assert!(fewer.no_local && fewer.rules.is_empty());
        let served: Settings =
            serde_json::from_str(r#"{"metrics":"[::1]:9474"}"#).expect("settings");
        assert_eq!(
            served.metrics.get(),
            Some("[::1]:9474".parse().expect("an address"))
        );
        assert!(
            serde_json::to_string(&served)
                .expect("JSON")
                .contains(r#""metrics":"[::1]:9474""#)
        );
        serde_json::from_str::<Settings>(r#"{"later":1}"#).expect_err("an unknown key");
        let labelled = r#"{"rules":["80:8080"],"labels":{"80:8080":{"comment":"OPS-1"}}}"#;
        let settings: Settings = serde_json::from_str(labelled).expect("settings");
        let texts: Vec<_> = settings.labelled().map(|rule| rule.to_string()).collect();
        assert_eq!(texts, ["80:8080 # OPS-1"]);
    }
}
