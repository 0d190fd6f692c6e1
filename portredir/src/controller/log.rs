//! The log of `-v`: the trace of this process's own redirect.

use std::time::Duration;

use super::Controller;
use crate::loader::chain;
use crate::loader::trace::{TraceError, Tracer};
use crate::observe::trace::{Context, interface_name};

/// The name that filters of the log level know these lines by.
const TARGET: &str = "portredir_ebpf";

impl Controller {
    /// Logs what becomes of each packet, until the process ends, where the log level asks for
    /// it. Must be called inside a runtime.
    pub fn log_decisions(&self) {
        if !log::log_enabled!(target: TARGET, log::Level::Debug) {
            return;
        }
        match Tracer::of(&self.datapath) {
            Ok(tracer) => drop(tokio::spawn(follow(tracer))),
            Err(error) => warn(&error),
        }
    }
}

async fn follow(mut tracer: Tracer) {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    // Rules come and go; the lines name the ports.
    let context = Context::new(Vec::new());
    loop {
        ticks.tick().await;
        for record in tracer.take_records() {
            let name = interface_name(record.head().ifindex);
            if let Some(line) = context.line(&record, name) {
                log::debug!(target: TARGET, "{line}");
            }
        }
        match tracer.take_lost() {
            Ok(0) => {}
            Ok(lost) => log::debug!(target: TARGET, "and {lost} more, which were not written"),
            Err(error) => return warn(&error),
        }
        if let Err(error) = tracer.renew() {
            return warn(&error);
        }
    }
}

fn warn(error: &TraceError) {
    log::warn!("cannot log packets: {}", chain(error));
}
