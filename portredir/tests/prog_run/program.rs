//! The programs that a packet can run through.

use portredir_common::wire::frame::Link;

use crate::packet::Hook;

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub is_xdp: bool,
    pub hook: Hook,
    pub link: Link,
    /// The number of bytes before the frame, in which the packet came.
    pub outer_len: usize,
}

/// A program for XDP, which sees ingress alone.
const fn xdp(name: &'static str, link: Link) -> Program {
    Program {
        name,
        is_xdp: true,
        hook: Hook::Ingress,
        link,
        outer_len: 0,
    }
}

/// A program for TC.
const fn tc(name: &'static str, hook: Hook, link: Link) -> Program {
    Program {
        name,
        is_xdp: false,
        hook,
        link,
        outer_len: 0,
    }
}

/// A program for TC that finds the network header: the kernel takes the first bytes for an
/// Ethernet header, which is the outer header here.
const fn tunnel(name: &'static str, hook: Hook) -> Program {
    Program {
        outer_len: 14,
        ..tc(name, hook, Link::Ip)
    }
}

/// All of them.
pub const PROGRAMS: [Program; 9] = [
    xdp("portredir_xdp", Link::Ethernet),
    xdp("portredir_frags", Link::Ethernet),
    xdp("portredir_xdpip", Link::Ip),
    tc("portredir_in", Hook::Ingress, Link::Ethernet),
    tc("portredir_in_ip", Hook::Ingress, Link::Ip),
    tc("portredir_out", Hook::Egress, Link::Ethernet),
    tc("portredir_outip", Hook::Egress, Link::Ip),
    tunnel("portredir_in_nh", Hook::Ingress),
    tunnel("portredir_outnh", Hook::Egress),
];

/// The programs for a packet.
pub fn programs(hook: Hook, link: Link) -> impl Iterator<Item = Program> {
    PROGRAMS
        .into_iter()
        .filter(move |p| p.hook == hook && p.link == link)
}
