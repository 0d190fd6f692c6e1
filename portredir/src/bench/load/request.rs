//! Requests for a measurement.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// The place of the client, if it is another than that of its process.
    pub place: Option<Place>,
}

/// A place where a client makes its sockets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The file of the network namespace.
    pub namespace: PathBuf,
    /// The cgroup, if the variant has one.
    pub cgroup: Option<PathBuf>,
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
