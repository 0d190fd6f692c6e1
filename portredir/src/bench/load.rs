//! The client process of the benchmark. It runs in the namespace of the clients, on the
//! CPU of the servers, and puts load on variants on request.
//!
//! Requests and events are lines of JSON. The client is a separate process because it
//! runs with real-time priority: a failure ends only this process, and the cleanup is not
//! delayed.

mod tcp;
mod udp;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context as _;
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::schedule::{self, Load};
use super::traffic::Traffic;

/// A request to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The kind of traffic.
    pub traffic: Traffic,
    /// The targets, one for each variant.
    pub targets: Vec<Target>,
    /// The approximate length of a turn in microseconds.
    pub length_us: u64,
    /// The number of cycles that are counted.
    pub cycles: usize,
    /// The seed for the order of turns.
    pub seed: u64,
    /// Whether a socket sends UDP packets, even if the kernel can generate them.
    pub is_raw: bool,
}

/// The place of a variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The server, and the port to connect to.
    pub addr: SocketAddrV4,
    /// The link to the variant; `None` on another machine.
    pub link: Option<Link>,
}

/// The end of a link at the client.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Link {
    /// The interface of the client.
    pub ifindex: u32,
    /// The address of the client.
    pub addr: Ipv4Addr,
    /// The MAC address of the client.
    pub mac: [u8; 6],
    /// The MAC address of the server.
    pub server_mac: [u8; 6],
}

/// The sender of UDP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A UDP socket of the client.
    Socket,
    /// The kernel, with `BPF_PROG_TEST_RUN` and live frames: the cost is that of the
    /// receiver, and a little of the generator.
    LiveFrames,
    /// A raw socket, with `sendmmsg`: the cost includes sending.
    RawSocket,
}

/// An event of the client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A cycle has ended, also one of the warm-up.
    Cycle,
    /// All cycles have ended.
    Done(Measured),
    /// Nothing could be measured.
    Failed(String),
}

/// The results of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Nanoseconds per operation, by target and then by cycle; `None` without a turn.
    pub costs: Vec<Vec<Option<f64>>>,
    /// The failure of each target.
    pub failures: Vec<Option<String>>,
    /// The number of UDP packets sent to each target, also in the warm-up.
    pub sent: Vec<u64>,
    /// The sender of the packets.
    pub source: Source,
}

/// Serves requests from standard input until it ends.
///
/// # Errors
///
/// A request cannot be parsed, or standard output is closed.
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
            &mut tcp::Bulk::new(&request.targets, tcp::Transfer::Upload),
        ),
        Traffic::Download => run(
            request,
            &mut tcp::Bulk::new(&request.targets, tcp::Transfer::Download),
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
    let outcome = schedule::run(
        load,
        schedule::Schedule {
            variants: request.targets.len(),
            cycles: request.cycles,
            length: Duration::from_micros(request.length_us),
        },
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
