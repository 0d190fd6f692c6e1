//! The values of options: their limits, and how the command line, files and the
//! pinned state spell them.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::sys::cgroup::is_cgroup2;

/// How many flows a table can have. Tables of fewer entries evict flows that are still
/// in use.
pub const FLOWS: RangeInclusive<u32> = 1024..=16_777_216;

/// How many seconds a stop can wait for connections.
pub const DRAIN_SECONDS: RangeInclusive<f64> = 0.0..=3600.0;

/// Parses a directory of a cgroup v2 hierarchy.
///
/// # Errors
///
/// A message for the command line.
pub fn cgroup(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if is_cgroup2(&path) {
        Ok(path)
    } else {
        Err("not a cgroup v2 directory; an example is /sys/fs/cgroup/system.slice")
    }
}

/// Parses the time to wait for connections.
///
/// # Errors
///
/// A message for the command line.
pub fn drain_timeout(text: &str) -> Result<Duration, String> {
    duration(text, *DRAIN_SECONDS.start())
}

/// Parses a number of seconds that is at least `least` and at most an hour.
///
/// # Errors
///
/// A message for the command line.
pub fn duration(text: &str, least: f64) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "expected a number of seconds, for example 2 or 0.5")?;
    let most = *DRAIN_SECONDS.end();
    if !(least..=most).contains(&seconds) {
        return Err(format!("must be between {least} and {most} seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Returns a parser of the size of a flow table.
#[must_use]
pub fn flows() -> clap::builder::RangedI64ValueParser<u32> {
    let (least, most) = (*FLOWS.start(), *FLOWS.end());
    clap::value_parser!(u32).range(i64::from(least)..=i64::from(most))
}

pub(super) fn drain_timeout_in_file<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Duration>, D::Error> {
    let seconds = f64::deserialize(from)?;
    if DRAIN_SECONDS.contains(&seconds) {
        return Ok(Some(Duration::from_secs_f64(seconds)));
    }
    let (least, most) = (DRAIN_SECONDS.start(), DRAIN_SECONDS.end());
    Err(de::Error::custom(format!(
        "drain-timeout: {seconds} is not between {least} and {most} seconds"
    )))
}

pub(super) fn max_tcp_flows_in_file<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<u32>, D::Error> {
    flows_in_file("max-tcp-flows", from)
}

pub(super) fn max_udp_flows_in_file<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<u32>, D::Error> {
    flows_in_file("max-udp-flows", from)
}

fn flows_in_file<'de, D: Deserializer<'de>>(key: &str, from: D) -> Result<Option<u32>, D::Error> {
    let flows = u32::deserialize(from)?;
    if FLOWS.contains(&flows) {
        return Ok(Some(flows));
    }
    let (least, most) = (FLOWS.start(), FLOWS.end());
    Err(de::Error::custom(format!(
        "{key}: {flows} is not between {least} and {most}"
    )))
}

/// A duration as a number of seconds, with serde.
pub(super) mod seconds {
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
