//! The tests, by the traffic that each of them sends.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use serde::{Deserialize, Serialize};

use crate::cli::Suite;

/// Where new flows come from; the lower half of the address varies.
pub const FLOWS: [u8; 4] = [198, 19, 0, 0];

/// The kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// [`Suite::Rr`].
    Rr,
    /// [`Suite::Crr`].
    Crr,
    /// [`Suite::Udp`].
    Udp,
    /// [`Suite::UdpNew`].
    UdpNew,
    /// [`Suite::Bulk`], from the client.
    Upload,
    /// [`Suite::Bulk`], to the client.
    Download,
}

/// The protocol that traffic is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Bytes of one transfer of [`Traffic::Upload`] and [`Traffic::Download`]: a MiB.
pub const TRANSFER_BYTES: usize = 1 << 20;

/// Bytes that are written or read at a time; they stay in a processor's cache.
pub const CHUNK_BYTES: usize = 1 << 17;

/// Sends one transfer.
///
/// # Errors
///
/// The errors of writing.
pub fn send(stream: &mut TcpStream, chunk: &[u8; CHUNK_BYTES]) -> io::Result<()> {
    (0..TRANSFER_BYTES / CHUNK_BYTES).try_for_each(|_| stream.write_all(chunk))
}

/// Receives one transfer.
///
/// # Errors
///
/// The errors of reading; `UnexpectedEof` when the data ends early.
pub fn receive(stream: &mut TcpStream, chunk: &mut [u8; CHUNK_BYTES]) -> io::Result<()> {
    (0..TRANSFER_BYTES / CHUNK_BYTES).try_for_each(|_| stream.read_exact(chunk))
}

impl Suite {
    /// The traffic of it; none where nothing travels.
    #[must_use]
    pub const fn traffic(self) -> &'static [Traffic] {
        match self {
            Self::Rr => &[Traffic::Rr],
            Self::Crr => &[Traffic::Crr],
            Self::Udp => &[Traffic::Udp],
            Self::UdpNew => &[Traffic::UdpNew],
            Self::Bulk => &[Traffic::Upload, Traffic::Download],
            Self::ProgRun | Self::Load | Self::Memory => &[],
        }
    }
}

impl Traffic {
    /// In reports.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Rr => "TCP request and response",
            Self::Crr => "TCP connection",
            Self::Udp => "UDP, one flow",
            Self::UdpNew => "UDP, every packet a new flow",
            Self::Upload => "TCP bulk, to the server",
            Self::Download => "TCP bulk, from the server",
        }
    }

    /// The name of one operation.
    #[must_use]
    pub const fn operation(self) -> &'static str {
        match self {
            Self::Rr => "request",
            Self::Crr => "connection",
            Self::Udp | Self::UdpNew => "packet",
            Self::Upload | Self::Download => "MiB",
        }
    }

    /// The protocol.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Udp | Self::UdpNew => Protocol::Udp,
            _ => Protocol::Tcp,
        }
    }

    /// Whether rules are looked up again and again.
    #[must_use]
    pub const fn begins_flows(self) -> bool {
        matches!(self, Self::Crr | Self::UdpNew)
    }
}
