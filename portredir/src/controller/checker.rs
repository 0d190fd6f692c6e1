//! The health checks of targets, as a task beside the watcher's loop.
//!
//! The task knows probes and their results, and no redirect: it tells which targets have
//! come up or gone down, and the loop changes the slots.

mod probe;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep_until;

use crate::ruleset::health::{Answer, Monitor, Probe, TargetChanged, Watched};

/// The most probes at a time; more wait.
const SEATS: usize = 64;

/// The most changes that are told at a time.
const MOST: usize = 4096;

/// The task that checks targets; it ends with this.
#[derive(Debug)]
pub struct Checker {
    wanted: watch::Sender<Vec<Watched>>,
    hurried: mpsc::UnboundedSender<BTreeSet<IpAddr>>,
    changes: mpsc::UnboundedReceiver<TargetChanged>,
    task: JoinHandle<()>,
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checker {
    /// Starts the task, without targets. Must be called inside a runtime.
    #[must_use]
    pub fn start() -> Self {
        let (wanted, wants) = watch::channel(Vec::new());
        let (hurried, hurries) = mpsc::unbounded_channel();
        let (teller, changes) = mpsc::unbounded_channel();
        Self {
            wanted,
            hurried,
            changes,
            task: tokio::spawn(run((wants, hurries), teller)),
        }
    }

    /// Checks these targets from now on, and no others. A target whose state differs from
    /// what the caller believes is told again by [`Self::changed`].
    pub fn watch(&self, targets: Vec<Watched>) {
        self.wanted.send_replace(targets);
    }

    /// Checks the targets at these addresses now, and not when their interval is over.
    pub fn hurry(&self, hosts: BTreeSet<IpAddr>) {
        if !hosts.is_empty() {
            // Nobody receives where the task has ended, so nothing is checked at all.
            let _ = self.hurried.send(hosts);
        }
    }

    /// Waits until targets have come up or gone down: all changes since the last time.
    ///
    /// A change is not lost when the wait is given up before its end.
    pub async fn changed(&mut self) -> Vec<TargetChanged> {
        let mut changes = Vec::new();
        if self.changes.recv_many(&mut changes, MOST).await == 0 {
            // The task has ended, so nothing changes any more.
            std::future::pending::<()>().await;
        }
        changes
    }
}

async fn run(
    (mut wants, mut hurries): (
        watch::Receiver<Vec<Watched>>,
        mpsc::UnboundedReceiver<BTreeSet<IpAddr>>,
    ),
    teller: mpsc::UnboundedSender<TargetChanged>,
) {
    let mut monitor = Monitor::new(fastrand::u64(..));
    let mut running = JoinSet::new();
    loop {
        let seats = SEATS - running.len();
        for probe in monitor.begin(Instant::now(), seats) {
            running.spawn(make(probe));
        }
        let due = monitor.next_due().filter(|_| running.len() < SEATS);
        let changes = tokio::select! {
            news = wants.changed() => {
                if news.is_err() {
                    return;
                }
                let targets = wants.borrow_and_update().clone();
                monitor.watch(&targets, Instant::now())
            }
            Some(hosts) = hurries.recv() => {
                monitor.hurry(&hosts, Instant::now());
                Vec::new()
            }
            Some(made) = running.join_next() => match made {
                Ok((probe, result)) => monitor.finish(&probe, result),
                Err(error) => {
                    log::warn!("health check: {error}");
                    Vec::new()
                }
            },
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                Vec::new()
            }
        };
        for change in changes {
            if teller.send(change).is_err() {
                return;
            }
        }
    }
}

/// Makes a probe, and tells the failure in a few words.
async fn make(probe: Probe) -> (Probe, Result<Answer, String>) {
    let result = probe::make(&probe).await;
    (probe, result.map_err(|failure| failure.to_string()))
}
