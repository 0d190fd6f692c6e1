//! The log of the programs, passed on to the logger of this process.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata};
use portredir_common::verdict::Reason;

use super::error::ControllerError;

/// Whether the programs are to log what they decide.
#[must_use]
pub fn is_logging() -> bool {
    log::log_enabled!(target: "portredir_ebpf", log::Level::Debug)
}

/// A logger that puts words to the decisions of the programs. A program logs the
/// number of a [`Reason`], a space and the packet.
pub(super) struct DecisionLog;

impl DecisionLog {
    /// Passes on what the programs log, until the process ends. Must be called
    /// inside a runtime, before the first program is attached.
    ///
    /// # Errors
    ///
    /// [`ControllerError::Log`].
    pub(super) fn forward(object: &mut Ebpf) -> Result<(), ControllerError> {
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
                .args(format_args!("{word}: {packet}"))
                .build(),
        );
    }

    fn flush(&self) {}
}
