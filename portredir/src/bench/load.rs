//! The client of the benchmark: a separate process, in the clients' namespace and on the
//! processor of the servers, that puts load on variants as requests ask.
//!
//! Requests and events are JSON, one a line. The client is a separate process because it
//! runs with real-time priority: a failure ends this process alone and does not delay the
//! cleanup.

mod tcp;
mod udp;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context as _;
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::bench::schedule::{self, Load};
use crate::bench::traffic::Traffic;

/// A request to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The kind of traffic.
    pub traffic: Traffic,
    /// The variants to measure.
    pub targets: Vec<Target>,
    /// The approximate length of a turn.
    pub length_us: u64,
    /// The number of cycles that count.
    pub cycles: usize,
    /// The seed of the order of turns.
    pub seed: u64,
    /// Whether a socket sends packets of UDP, also where the kernel could.
    pub is_raw: bool,
}

/// The address of a variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The server and the destination port.
    pub addr: SocketAddrV4,
    /// The link to the server; `None` where the variant has no link of its own.
    pub link: Option<Link>,
}

/// The client's side of a link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Link {
    /// The index of the client's interface.
    pub ifindex: u32,
    /// The client's address.
    pub addr: Ipv4Addr,
    /// The MAC address of the client.
    pub mac: [u8; 6],
    /// The MAC address of the server.
    pub server_mac: [u8; 6],
}

/// The source of UDP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A socket of the client.
    Socket,
    /// The kernel, by `BPF_PROG_TEST_RUN` with live frames: the cost is that of the
    /// receiver, and a little of the sender.
    LiveFrames,
    /// A raw socket, by `sendmmsg`: the cost includes that of sending.
    RawSocket,
}

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
        Traffic::Upload => run(request, &mut tcp::Bulk::new(&request.targets, true)),
        Traffic::Download => run(request, &mut tcp::Bulk::new(&request.targets, false)),
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
    let outcome = schedule::run(
        load,
        request.targets.len(),
        request.cycles,
        Duration::from_micros(request.length_us),
        &mut Rng::with_seed(request.seed),
        || {
            if result.is_ok() {
                result = say(&Event::Cycle);
            }
        },
    );
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
