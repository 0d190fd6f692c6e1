//! The values of options that have a range or a form of their own. Command line,
//! environment and files check them alike.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::rule::duration::seconds;
use crate::sys::cgroup::is_cgroup2;

/// The reason why a value is refused.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ValueError {
    /// The text is no duration.
    #[error("expected a duration, for example 10, 10s, 1.5s or 5min; without a unit in seconds")]
    NotDuration,
    /// The number of seconds is too small or too large.
    #[error("{seconds} is not between {least} and {most} seconds")]
    Seconds {
        /// The number.
        seconds: f64,
        /// The smallest that is possible.
        least: f64,
        /// The largest that is possible.
        most: f64,
    },
    /// The text is no whole number.
    #[error("expected a whole number")]
    NotNumber,
    /// The number of flows is too small or too large.
    #[error("{flows} is not between {} and {}", FlowCount::LEAST, FlowCount::MOST)]
    Flows {
        /// The number.
        flows: u32,
    },
    /// The text is no address with a port.
    #[error("expected ADDR:PORT, for example 127.0.0.1:9474 or [::1]:9474, or `off`")]
    NotSocketAddr,
    /// The way of forwarded packets is not there yet.
    #[error("`direct` comes with a later version; use `stack`, by which the kernel routes packets")]
    NotDirect,
    /// The way of forwarded packets does not exist.
    #[error("unknown way `{0}`; use `stack`, by which the kernel routes packets")]
    NotForward(String),
    /// The path is no directory of a cgroup v2 hierarchy.
    #[error("not a cgroup v2 directory; an example is /sys/fs/cgroup/system.slice")]
    NotCgroup,
}

/// Reads a duration such as `10`, `10s`, `500ms`, `5min` or `1min30s` that is `least`
/// seconds or more and at most an hour. A number without a unit is in seconds.
///
/// # Errors
///
/// [`ValueError::NotDuration`], [`ValueError::Seconds`].
pub fn duration(text: &str, least: f64) -> Result<Duration, ValueError> {
    let seconds = seconds(text).ok_or(ValueError::NotDuration)?;
    in_range(seconds, least)
}

fn in_range(seconds: f64, least: f64) -> Result<Duration, ValueError> {
    const MOST: f64 = 3600.0;
    if (least..=MOST).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(ValueError::Seconds {
            seconds,
            least,
            most: MOST,
        })
    }
}

/// The longest time to wait for connections: 0 to 3600 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimeout(pub Duration);

impl FromStr for DrainTimeout {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        duration(text, 0.0).map(Self)
    }
}

impl Serialize for DrainTimeout {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.0.as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for DrainTimeout {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let duration = from.deserialize_any(DurationVisitor)?;
        duration.map(Self).map_err(de::Error::custom)
    }
}

/// Reads a number of seconds, or the text of a duration.
struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Result<Duration, ValueError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration, for example 10, \"10s\" or \"5min\"")
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Self::Value, E> {
        Ok(in_range(seconds, 0.0))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "what is not exact is out of range"
    )]
    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Self::Value, E> {
        self.visit_f64(seconds as f64)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "what is not exact is out of range"
    )]
    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Self::Value, E> {
        self.visit_f64(seconds as f64)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(duration(text, 0.0))
    }
}

/// The number of flows that a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FlowCount(u32);

impl FlowCount {
    /// The smallest table. A flood of new flows would fill a smaller one at once.
    pub const LEAST: u32 = 1024;
    /// The largest table.
    pub const MOST: u32 = 16_777_216;

    /// A number of flows between [`Self::LEAST`] and [`Self::MOST`].
    ///
    /// # Errors
    ///
    /// [`ValueError::Flows`].
    pub const fn new(flows: u32) -> Result<Self, ValueError> {
        if flows < Self::LEAST || flows > Self::MOST {
            return Err(ValueError::Flows { flows });
        }
        Ok(Self(flows))
    }

    /// A number of flows that is known to be possible.
    pub(super) const fn fixed(flows: u32) -> Self {
        assert!(flows >= Self::LEAST && flows <= Self::MOST);
        Self(flows)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for FlowCount {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::new(text.parse().map_err(|_| ValueError::NotNumber)?)
    }
}

impl<'de> Deserialize<'de> for FlowCount {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(u32::deserialize(from)?).map_err(de::Error::custom)
    }
}

/// The cgroup v2 directory of local clients, or none for the root of the hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CgroupDir(Option<PathBuf>);

impl CgroupDir {
    /// The directory, if one is named.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.as_deref()
    }
}

impl FromStr for CgroupDir {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let path = PathBuf::from(text);
        if is_cgroup2(&path) {
            Ok(Self(Some(path)))
        } else {
            Err(ValueError::NotCgroup)
        }
    }
}

/// The address and port where metrics are served, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsAddr(Option<SocketAddr>);

impl MetricsAddr {
    /// The word for no address.
    const OFF: &str = "off";

    /// The address, unless metrics are not served.
    #[must_use]
    pub const fn get(self) -> Option<SocketAddr> {
        self.0
    }

    /// Whether metrics are not served.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.0.is_none()
    }
}

impl FromStr for MetricsAddr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == Self::OFF {
            return Ok(Self(None));
        }
        let addr = text.parse().ok();
        let addr = addr.filter(|addr: &SocketAddr| addr.port() != 0);
        addr.map(|addr| Self(Some(addr)))
            .ok_or(ValueError::NotSocketAddr)
    }
}

impl fmt::Display for MetricsAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(addr) => addr.fmt(f),
            None => f.write_str(Self::OFF),
        }
    }
}

impl Serialize for MetricsAddr {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MetricsAddr {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The way of packets to targets with an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardBy {
    /// The kernel routes them.
    #[default]
    Stack,
}

impl ForwardBy {
    /// Whether this is the default.
    #[must_use]
    pub const fn is_usual(&self) -> bool {
        matches!(self, Self::Stack)
    }
}

impl FromStr for ForwardBy {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "stack" => Ok(Self::Stack),
            "direct" => Err(ValueError::NotDirect),
            _ => Err(ValueError::NotForward(text.to_owned())),
        }
    }
}

impl Serialize for ForwardBy {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Stack => to.serialize_str("stack"),
        }
    }
}

impl<'de> Deserialize<'de> for ForwardBy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}
