//! The client of the benchmark: a separate process, in the clients' namespace and on the
//! processor of the servers, that puts load on variants as requests ask.
//!
//! Requests and events are JSON, one a line. The client is a separate process because it
//! runs with real-time priority: a failure ends this process alone and does not delay the
//! cleanup.

pub mod request;
mod tcp;
mod udp;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use fastrand::Rng;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use self::request::{Place, Request, Source, Target};
use self::tcp::Direction;
use crate::bench::schedule::{self, Load, Schedule};
use crate::bench::traffic::Traffic;

/// An event that the client reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A cycle is done; the event is also sent for cycles of the warm-up.
    Cycle,
    /// The measurement is done.
    Done(Measured),
    /// Nothing could be measured.
    Failed(String),
}

/// The results of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Nanoseconds per operation, by target, then by cycle; `None` where there was no
    /// turn.
    pub costs: Vec<Vec<Option<f64>>>,
    /// The error of each target.
    pub failures: Vec<Option<String>>,
    /// For UDP, the number of packets that each target's server had to get, with those of
    /// the warm-up.
    pub sent: Vec<u64>,
    /// The source of the packets.
    pub source: Source,
}

/// Measures as the requests on standard input ask, until it ends.
///
/// # Errors
///
/// When a request is not understood, or an event cannot be written.
pub fn load() -> anyhow::Result<()> {
    for line in io::stdin().lines() {
        let line = line.context("read a request")?;
        let request: Request = serde_json::from_str(&line).context("parse a request")?;
        let event = match measure(&request) {
            Ok(measured) => Event::Done(measured),
            Err(error) => Event::Failed(format!("{error:#}")),
        };
        say(&event)?;
    }
    Ok(())
}

fn say(event: &Event) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(event)?)?;
    out.flush().context("tell what was measured")
}

fn measure(request: &Request) -> anyhow::Result<Measured> {
    match request.traffic {
        Traffic::Rr => run(request, &mut tcp::RequestResponse::new(&request.targets)),
        Traffic::Crr => run(request, &mut tcp::Connections::new(&request.targets)),
        Traffic::Upload => run(
            request,
            &mut tcp::Bulk::new(&request.targets, Direction::Upload),
        ),
        Traffic::Download => run(
            request,
            &mut tcp::Bulk::new(&request.targets, Direction::Download),
        ),
        Traffic::Udp | Traffic::UdpNew => {
            let mut load = udp::Packets::new(request)?;
            let mut measured = run(request, &mut load)?;
            measured.sent = load.sent().to_vec();
            measured.source = load.source();
            Ok(measured)
        }
    }
}

/// A load whose sockets are made where each target wants them.
struct Placed<'a> {
    load: &'a mut dyn Load,
    targets: &'a [Target],
}

impl Load for Placed<'_> {
    fn slice(&mut self, target: usize, length: Duration) -> anyhow::Result<f64> {
        if let Some(place) = &self.targets[target].place {
            enter(place)?;
        }
        self.load.slice(target, length)
    }
}

/// Moves this process, which has one thread, to a place.
fn enter(place: &Place) -> anyhow::Result<()> {
    let namespace = File::open(&place.namespace).context("open a network namespace")?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
    let Some(cgroup) = &place.cgroup else {
        return Ok(());
    };
    // 0 is whoever writes (Documentation/admin-guide/cgroup-v2.rst).
    fs::write(cgroup.join("cgroup.procs"), "0").context("enter a cgroup")
}

fn run(request: &Request, load: &mut dyn Load) -> anyhow::Result<Measured> {
    let load = &mut Placed {
        load,
        targets: &request.targets,
    };
    let mut result = Ok(());
    let schedule = Schedule {
        variants: request.targets.len(),
        cycles: request.cycles,
        length: Duration::from_micros(request.length_us),
    };
    let mut rng = Rng::with_seed(request.seed);
    let outcome = schedule::run(load, schedule, &mut rng, || {
        if result.is_ok() {
            result = say(&Event::Cycle);
        }
    });
    result?;
    let costs = outcome.costs.into_iter();
    Ok(Measured {
        costs: costs
            .map(|costs| {
                let costs = costs.into_iter();
                costs.map(|cost| cost.is_finite().then_some(cost)).collect()
            })
            .collect(),
        failures: outcome.failures,
        sent: vec![0; request.targets.len()],
        source: Source::Socket,
    })
}
