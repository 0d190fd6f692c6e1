//! The reasons why a flow cannot be explained.

use std::net::IpAddr;

use thiserror::Error;

use crate::loader::DatapathError;
use crate::sys::sock_diag::SockDiagError;

/// The reason why a flow cannot be explained.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// The interface cannot be told from the routes.
    #[error("no route leads to {0}, so the interface is unknown; add: on INTERFACE")]
    NoRoute(IpAddr),
    /// There is no such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// There is no such interface.
    #[error("there is no interface {name}; this host has: {known}")]
    NoInterface {
        /// The name.
        name: String,
        /// The interfaces that exist.
        known: String,
    },
    /// The packets of an interface come in on several others.
    #[error("packets of {name} are redirected where they come in; name one of: {others}")]
    Elsewhere {
        /// The name.
        name: String,
        /// The interfaces on which the packets come in.
        others: String,
    },
    /// The program left a packet that it should not.
    #[error("the program left the packet with a wrong length or checksum")]
    Unreadable,
    /// The maps are those of another version.
    #[error(
        "the maps of the running redirect are of another version of portredir; take them over: \
         portredir save - | portredir up --config -"
    )]
    OtherMaps,
    /// The maps, or the programs, cannot be read or run.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The sockets of this host cannot be listed.
    #[error(transparent)]
    Sockets(#[from] SockDiagError),
}
