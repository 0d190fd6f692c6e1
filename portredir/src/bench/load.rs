//! The client of the benchmark: a process of its own, in the clients' namespace and
//! on the processor of the servers, that puts load on variants as it is told.
//!
//! Requests and events are JSON, one a line. A process of its own, because it runs
//! with real-time priority: what goes wrong in it ends it alone, and those who
//! clean up are not held up.

mod tcp;
mod udp;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context as _;
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use self::tcp::Direction;
use crate::bench::schedule::{self, Load, Schedule};
use crate::bench::traffic::Traffic;

/// The measurement that the client is to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The kind of traffic.
    pub traffic: Traffic,
    /// The variants.
    pub targets: Vec<Target>,
    /// About how long a turn is.
    pub length_us: u64,
    /// How many cycles count.
    pub cycles: usize,
    /// The seed for the order of turns.
    pub seed: u64,
    /// Whether a socket sends packets of UDP, also where the kernel could.
    pub is_raw: bool,
}

/// Where a variant is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The server, and the port to connect to.
    pub addr: SocketAddrV4,
    /// The link to it; `None` where there is none of its own.
    pub link: Option<Link>,
}

/// The client's side of a link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Link {
    /// The interface of the client.
    pub ifindex: u32,
    /// The client's address.
    pub addr: Ipv4Addr,
    /// The MAC address of the client.
    pub mac: [u8; 6],
    /// The MAC address of the server.
    pub server_mac: [u8; 6],
}

/// Where packets of UDP come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A socket of the client.
    Socket,
    /// The kernel, by `BPF_PROG_TEST_RUN` with live frames: the cost is that of the
    /// receiver, and a little of the traffic generator.
    LiveFrames,
    /// A raw socket, by `sendmmsg`: the cost of sending is part of the cost.
    RawSocket,
}

/// A message of the client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A cycle is done, also of the warm-up.
    Cycle,
    /// All is done.
    Done(Measured),
    /// Nothing could be measured.
    Failed(String),
}

/// The result of a measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// By target, then by cycle: nanoseconds per operation; `None` where there was
    /// no turn.
    pub costs: Vec<Vec<Option<f64>>>,
    /// By target, what was wrong.
    pub failures: Vec<Option<String>>,
    /// By target, packets that a server had to get, also in the warm-up; of UDP.
    pub sent: Vec<u64>,
    /// The source of the packets.
    pub source: Source,
}

/// Does what it is told, until its input ends.
///
/// # Errors
///
/// When the request is not understood, or the reader is gone.
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

fn run(request: &Request, load: &mut dyn Load) -> anyhow::Result<Measured> {
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
