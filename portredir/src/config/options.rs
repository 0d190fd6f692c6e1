//! The one list of options: each is a flag of the command line, an environment
//! variable, a key in files, and a field of [`Settings`].

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::engine::EngineChoice;
use super::selection::Selection;
use super::value::{self, seconds};
use crate::rule::Rule;

/// Makes [`Options`], [`Settings`] and [`ALL`] of the list of options.
///
/// A line `name: Given => Type = default, Effect;` is a field `name` of type
/// `Option<Given>` in [`Options`], with the attributes before it, and of type `Type`
/// in [`Settings`], with the attributes before that type.
macro_rules! options {
    ($(
        $(#[$option:meta])*
        $name:ident: $given:ty => $(#[$setting:meta])* $type:ty = $default:expr, $effect:ident;
    )*) => {
        /// The options that a command line, the environment or a file gives.
        #[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Options {
            $(
                $(#[$option])*
                pub $name: Option<$given>,
            )*

            /// The rules of a file, each with its place in the text. The command line
            /// gives rules as words instead.
            #[arg(skip)]
            pub rules: Vec<Spanned<String>>,
        }

        /// All options with their values, and the rules.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Settings {
            $(
                #[doc = concat!("The value of [`Options::", stringify!($name), "`].")]
                $(#[$setting])*
                pub $name: $type,
            )*
            /// The rules, in order.
            pub rules: Vec<Rule>,
        }

        impl Default for Settings {
            fn default() -> Self {
                Self {
                    $($name: $default,)*
                    rules: Vec::new(),
                }
            }
        }

        impl Options {
            /// Merges two sets of options: where both give one, `later` wins.
            #[must_use]
            pub fn merge(self, later: Self) -> Self {
                Self {
                    $($name: later.$name.or(self.$name),)*
                    rules: [self.rules, later.rules].concat(),
                }
            }

            /// Puts the options that are given in the place of those of `settings`. The
            /// rules of `settings` stay.
            #[must_use]
            pub fn over(self, settings: Settings) -> Settings {
                Settings {
                    $($name: Over::over(self.$name, settings.$name),)*
                    rules: settings.rules,
                }
            }
        }

        /// Every option, by the name of its field, with what a change of it takes.
        pub(super) const ALL: &[(&str, Effect)] = &[
            $((stringify!($name), Effect::$effect),)*
        ];
    };
}

options! {
    /// Interfaces: names, globs, !exclusions, comma-separated [default: all].
    ///
    /// `eth0,wg*` selects eth0 and every interface whose name begins with wg, also one
    /// that appears later. `!docker0` selects every interface except docker0. An
    /// exclusion takes precedence over a name. An interface that is named without a glob
    /// must exist.
    #[arg(long, value_name = "NAME,…", env = "PORTREDIR_IFACE", hide_env = true)]
    iface: Selection => Selection = Selection::all(), Attach;

    /// Engine: auto, xdp, tc, socket or xdp-generic [default: auto].
    #[arg(long, value_enum, hide_possible_values = true)]
    #[arg(env = "PORTREDIR_ENGINE", hide_env = true)]
    engine: EngineChoice => EngineChoice = EngineChoice::default(), Attach;

    /// Do not redirect local clients (locally generated traffic).
    #[arg(long, env = "PORTREDIR_NO_LOCAL", hide_env = true, hide_short_help = true)]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    #[arg(value_name = "BOOL", hide_possible_values = true)]
    no_local: bool => bool = false, Attach;

    /// Block direct access to target ports from other hosts.
    #[arg(long, env = "PORTREDIR_HIDE_TARGET", hide_env = true, hide_short_help = true)]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    #[arg(value_name = "BOOL", hide_possible_values = true)]
    hide_target: bool => bool = false, Live;

    /// Redirect only while a process listens on the target port.
    ///
    /// Otherwise the packet goes to the destination port itself.
    #[arg(long, env = "PORTREDIR_IF_LISTENING", hide_env = true, hide_short_help = true)]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    #[arg(value_name = "BOOL", hide_possible_values = true)]
    if_listening: bool => bool = false, Live;

    /// With `--engine socket`: also deliver to servers that listen only on 127.0.0.1 or ::1.
    ///
    /// Other hosts can then connect to servers that were meant for local clients only, if
    /// a rule has their port as its target port.
    #[arg(long, env = "PORTREDIR_ALLOW_LOOPBACK_TARGET", hide_env = true)]
    #[arg(hide_short_help = true)]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    #[arg(value_name = "BOOL", hide_possible_values = true)]
    allow_loopback_target: bool => bool = false, Attach;

    /// Limit the redirection of local clients to processes in this cgroup v2 directory.
    ///
    /// Default: the root of the hierarchy, and so every process.
    #[arg(long, value_name = "PATH", value_parser = value::cgroup, hide_short_help = true)]
    #[arg(env = "PORTREDIR_CGROUP", hide_env = true)]
    cgroup: PathBuf => Option<PathBuf> = None, Attach;

    /// How long to wait for redirected connections when stopping, in seconds [default: 10].
    ///
    /// New connections go to the destination port itself meanwhile. A second Ctrl-C stops
    /// waiting.
    #[arg(long, value_name = "SECONDS", value_parser = value::drain_timeout)]
    #[arg(env = "PORTREDIR_DRAIN_TIMEOUT", hide_env = true, hide_short_help = true)]
    #[serde(deserialize_with = "value::drain_timeout_in_file")]
    drain_timeout: Duration => #[serde(with = "seconds")] Duration = Duration::from_secs(10), Live;

    /// Size of the table of TCP flows, which also holds direct connections to target
    /// ports; 32 bytes of kernel memory per entry [default: 262144].
    #[arg(long, value_name = "N", value_parser = value::flows(), hide_short_help = true)]
    #[arg(env = "PORTREDIR_MAX_TCP_FLOWS", hide_env = true)]
    #[serde(deserialize_with = "value::max_tcp_flows_in_file")]
    max_tcp_flows: u32 => u32 = 262_144, Attach;

    /// Size of the table of UDP flows, and of the table of TCP flows that are not yet
    /// accepted; 32 bytes of kernel memory per entry in each [default: 65536].
    #[arg(long, value_name = "N", value_parser = value::flows(), hide_short_help = true)]
    #[arg(env = "PORTREDIR_MAX_UDP_FLOWS", hide_env = true)]
    #[serde(deserialize_with = "value::max_udp_flows_in_file")]
    max_udp_flows: u32 => u32 = 65_536, Attach;
}

/// The effect of a change of an option on attached programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Programs have to be attached again: `portredir up` does it.
    Attach,
    /// The change is possible while programs are attached.
    Live,
}

/// A value that may be given, in the place of another.
trait Over<T> {
    fn over(self, base: T) -> T;
}

impl<T> Over<T> for Option<T> {
    fn over(self, base: T) -> T {
        self.unwrap_or(base)
    }
}

impl<T> Over<Option<T>> for Option<T> {
    fn over(self, base: Option<T>) -> Option<T> {
        self.or(base)
    }
}
