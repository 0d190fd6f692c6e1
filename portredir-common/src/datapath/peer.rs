//! The peer that a client on this host names, and the call by which it does.

use crate::flow::FlowLookup;
use crate::kernel::Hit;
use crate::net::{Addr, Port, Protocol};

/// The system call by which a client on this host names its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerCall {
    /// `connect`.
    Connect,
    /// `sendto` or `sendmsg`, with an address.
    Send,
}

/// The peer that a client on this host names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedPeer {
    /// The protocol of the socket.
    pub protocol: Protocol,
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Port,
}

#[inline(always)]
pub(super) const fn is_any(addr: Addr) -> bool {
    addr.is(Addr::V4_ANY) || addr.is(Addr::V6_ANY)
}

/// The call as it is counted.
#[inline(always)]
pub(super) fn hit(rule: u16, call: PeerCall, is_new: bool, at_ns: u64) -> Hit {
    let connection = Hit::connection(rule, at_ns);
    match call {
        PeerCall::Connect => connection,
        PeerCall::Send => Hit {
            segments: 1,
            flow: if is_new {
                FlowLookup::Inserted
            } else {
                FlowLookup::Established
            },
            ..connection
        },
    }
}
