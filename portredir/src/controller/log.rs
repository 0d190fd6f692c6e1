//! The log of the programs, passed on to the logger of this process.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata};
use portredir_common::verdict::Reason;

use crate::loader::DatapathError;

/// Whether the programs should log their decisions.
#[must_use]
pub fn is_logging() -> bool {
    log::log_enabled!(target: "portredir_ebpf", log::Level::Debug)
}

/// A logger that puts the decisions of the programs into words. A program logs the number
/// of a [`Reason`], a space and the packet.
pub(super) struct DecisionLog;

impl DecisionLog {
    /// Passes on the log of the programs, until the process ends. Must be called inside a
    /// runtime, before the first program is attached.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Log`].
    pub(super) fn forward(object: &mut Ebpf) -> Result<(), DatapathError> {
        let mut logger = EbpfLogger::init_with_logger(object, Self)?;
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            loop {
                ticks.tick().await;
                logger.flush();
            }
        });
        Ok(())
    }
}

impl Log for DecisionLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        log::logger().enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let (index, packet) = text.split_once(' ').unwrap_or_default();
        let reason = index
            .parse()
            .ok()
            .and_then(|index: usize| Reason::ALL.get(index));
        let word = reason.map_or(index, |reason| reason.label());
        log::logger().log(
            &log::Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{word}: {}", readable(packet)))
                .build(),
        );
    }

    fn flush(&self) {}
}

/// A packet of the log, `::ffff:192.0.2.1 80 -> …`, with addresses and ports as people
/// write them.
fn readable(packet: &str) -> String {
    let words: Vec<_> = packet.split(' ').collect();
    let (src, dst) = match words[..] {
        [src, src_port, "->", dst, dst_port] => (endpoint(src, src_port), endpoint(dst, dst_port)),
        [src, "->", dst, dst_port] => (Some(src.to_owned()), endpoint(dst, dst_port)),
        _ => (None, None),
    };
    match (src, dst) {
        (Some(src), Some(dst)) => format!("{src} -> {dst}"),
        _ => packet.to_owned(),
    }
}

fn endpoint(addr: &str, port: &str) -> Option<String> {
    let addr: IpAddr = addr.parse().ok()?;
    let port = port.parse().ok()?;
    Some(SocketAddr::new(addr.to_canonical(), port).to_string())
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn addresses_are_written_as_people_do() {
        for (packet, expected) in [
            (
                "::ffff:10.77.0.2 58268 -> ::ffff:10.77.0.1 8080",
                "10.77.0.2:58268 -> 10.77.0.1:8080",
            ),
            ("fd77::2 5 -> fd77::1 80", "[fd77::2]:5 -> [fd77::1]:80"),
            ("socket -> ::ffff:127.0.0.1 80", "socket -> 127.0.0.1:80"),
            ("another text", "another text"),
        ] {
            assert_eq!(readable(packet), expected);
        }
    }
}
