//! What is to be redirected and how, wherever it was said: on the command line,
//! in the environment, in files.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::engine::EngineChoice;
use crate::config::selection::Selection;
use crate::rule::Rule;

/// How many flows a table can have. The kernel's LRU maps evict early when they
/// are small: they hand out entries in batches of 128 per CPU.
pub const FLOWS: RangeInclusive<u32> = 1024..=16_777_216;

/// How long connections can be waited for.
pub const DRAIN_SECONDS: RangeInclusive<f64> = 0.0..=3600.0;

/// Everything that is settled when the redirecting begins.
///
/// The names of the fields are those of the options, and of the keys in files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Interfaces.
    pub iface: Selection,
    /// How connections are redirected.
    pub engine: EngineChoice,
    /// Whether clients on this host are left alone.
    pub no_local: bool,
    /// With the engine `socket`: whether servers on loopback addresses serve
    /// other hosts.
    pub allow_loopback_target: bool,
    /// The cgroup v2 directory whose processes are the clients on this host;
    /// `None` for all.
    pub cgroup: Option<PathBuf>,
    /// Whether other hosts reach a target by way of a rule alone.
    pub hide_target: bool,
    /// Whether a rule rests while nobody listens on its target.
    pub if_listening: bool,
    /// TCP flows to remember.
    pub max_tcp_flows: u32,
    /// UDP flows, and TCP flows without a connection yet, to remember.
    pub max_udp_flows: u32,
    /// How long to wait at the end for connections whose packets are rewritten.
    #[serde(with = "seconds")]
    pub drain_timeout: Duration,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            iface: Selection::all(),
            engine: EngineChoice::default(),
            no_local: false,
            allow_loopback_target: false,
            cgroup: None,
            hide_target: false,
            if_listening: false,
            max_tcp_flows: 262_144,
            max_udp_flows: 65_536,
            drain_timeout: Duration::from_secs(10),
            rules: Vec::new(),
        }
    }
}

impl Settings {
    /// The first option that differs and that what is attached depends on.
    #[must_use]
    pub fn differs_where_attached(&self, other: &Self) -> Option<&'static str> {
        let differs = [
            ("iface", self.iface != other.iface),
            ("engine", self.engine != other.engine),
            ("no-local", self.no_local != other.no_local),
            (
                "allow-loopback-target",
                self.allow_loopback_target != other.allow_loopback_target,
            ),
            ("cgroup", self.cgroup != other.cgroup),
            ("max-tcp-flows", self.max_tcp_flows != other.max_tcp_flows),
            ("max-udp-flows", self.max_udp_flows != other.max_udp_flows),
        ];
        differs
            .into_iter()
            .find(|(_, differs)| *differs)
            .map(|(name, _)| name)
    }
}

/// A duration as its seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(duration.as_secs_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(from)?;
        Duration::try_from_secs_f64(seconds).map_err(de::Error::custom)
    }
}
