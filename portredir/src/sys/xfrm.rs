//! IPsec policies of this network namespace, by xfrm netlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
    NlasIterator,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_XFRM;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::netlink::{NetlinkError, ask};

/// A policy for packets that this host sends, with a transformation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The source addresses of the packets.
    pub src: IpNet,
    /// The destination addresses.
    pub dst: IpNet,
    /// Whether packets need a mark: those that a VTI interface sends have one.
    pub needs_mark: bool,
    /// Whether packets have to leave by an xfrm interface.
    pub needs_interface: bool,
}

/// Whether the kernel has IPsec.
#[must_use]
pub fn is_supported() -> bool {
    Socket::new(NETLINK_XFRM).is_ok()
}

/// Lists the policies for packets that this host sends, with a transformation.
///
/// # Errors
///
/// [`NetlinkError`]: the kernel has no IPsec, or the caller lacks `CAP_NET_ADMIN`.
pub fn policies() -> Result<Vec<Policy>, NetlinkError> {
    // struct xfrm_userpolicy_id, of which a dump reads nothing.
    let question = Message(vec![0; 64]);
    let payload = NetlinkPayload::InnerMessage(question);
    let answers = ask(NETLINK_XFRM, payload, NLM_F_DUMP)?;
    let policies = answers.iter().filter_map(|Message(bytes)| parse(bytes));
    Ok(policies.collect())
}

/// A message about a policy, without its netlink header.
#[derive(Clone, Debug)]
struct Message(Vec<u8>);

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        const XFRM_MSG_GETPOLICY: u16 = 0x15;
        XFRM_MSG_GETPOLICY
    }

    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

impl NetlinkDeserializable for Message {
    type Error = std::convert::Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(payload.to_vec()))
    }
}

/// Reads a `struct xfrm_userpolicy_info` of include/uapi/linux/xfrm.h and the attributes
/// behind it; `None` for a policy that transforms no outgoing packet.
fn parse(bytes: &[u8]) -> Option<Policy> {
    // Offsets of the selector, then of the policy.
    const DST: usize = 0;
    const SRC: usize = 16;
    const FAMILY: usize = 40;
    const DST_PREFIX_LEN: usize = 42;
    const SRC_PREFIX_LEN: usize = 43;
    const DIRECTION: usize = 160;
    const ACTION: usize = 161;
    const LEN: usize = 168;
    const XFRM_POLICY_OUT: u8 = 1;
    const XFRM_POLICY_ALLOW: u8 = 0;
    const XFRMA_TMPL: u16 = 5;
    const XFRMA_MARK: u16 = 21;
    const XFRMA_IF_ID: u16 = 31;

    let attributes = NlasIterator::new(bytes.get(LEN..)?);
    if (bytes[DIRECTION], bytes[ACTION]) != (XFRM_POLICY_OUT, XFRM_POLICY_ALLOW) {
        return None;
    }
    let family = u16::from_ne_bytes([bytes[FAMILY], bytes[FAMILY + 1]]);
    let net = |addr: usize, len: usize| {
        let addr: [u8; 16] = bytes[addr..addr + 16].try_into().ok()?;
        let addr = if i32::from(family) == libc::AF_INET {
            let [a, b, c, d, ..] = addr;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(addr))
        };
        IpNet::new(addr, bytes[len]).ok()
    };
    let mut policy = Policy {
        src: net(SRC, SRC_PREFIX_LEN)?,
        dst: net(DST, DST_PREFIX_LEN)?,
        needs_mark: false,
        needs_interface: false,
    };
    let mut is_transforming = false;
    for attribute in attributes.filter_map(Result::ok) {
        let value = attribute.value();
        let is_set = value.iter().any(|byte| *byte != 0);
        match attribute.kind() {
            XFRMA_TMPL => is_transforming = !value.is_empty(),
            // A value and a mask.
            XFRMA_MARK => policy.needs_mark = is_set,
            XFRMA_IF_ID => policy.needs_interface = is_set,
            _ => {}
        }
    }
    is_transforming.then_some(policy)
}

/// A socket that hears of changed policies.
#[derive(Debug)]
pub struct Changes(AsyncFd<Socket>);

impl Changes {
    /// Opens the socket. Must be called inside a runtime.
    ///
    /// # Errors
    ///
    /// The kernel has no IPsec, or the caller lacks `CAP_NET_ADMIN`.
    pub fn open() -> io::Result<Self> {
        const XFRMNLGRP_POLICY: u32 = 4;
        let mut socket = Socket::new(NETLINK_XFRM)?;
        socket.bind_auto()?;
        socket.add_membership(XFRMNLGRP_POLICY)?;
        socket.set_non_blocking(true)?;
        #[expect(unsafe_code, reason = "the runtime watches a descriptor")]
        // SAFETY: the socket has one descriptor, and keeps it open until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Self(fd))
    }

    /// Waits for a change. That messages were lost is one too.
    pub async fn next(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                // The runtime ends.
                return std::future::pending().await;
            };
            if ready.try_io(|fd| fd.get_ref().recv_from_full()).is_ok() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy as the kernel sends it, from 10.9.0.0/16 to 198.51.100.7.
    fn bytes(direction: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 168];
        bytes[..4].copy_from_slice(&[198, 51, 100, 7]);
        bytes[16..20].copy_from_slice(&[10, 9, 0, 0]);
        bytes[40..42].copy_from_slice(&2_u16.to_ne_bytes());
        bytes[42..44].copy_from_slice(&[32, 16]);
        bytes[160] = direction;
        for (kind, value) in attributes {
            let len = u16::try_from(4 + value.len()).expect("short");
            bytes.extend(len.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
        }
        bytes
    }

    #[test]
    fn a_policy_out_with_a_template_counts() {
        let template: (u16, &[u8]) = (5, &[1; 64]);
        let expected = Policy {
            src: "10.9.0.0/16".parse().expect("a network"),
            dst: "198.51.100.7/32".parse().expect("a network"),
            needs_mark: false,
            needs_interface: false,
        };
        assert_eq!(parse(&bytes(1, &[template])), Some(expected.clone()));
        let with_limits = [
            (21, &[7, 0, 0, 0, 7, 0, 0, 0][..]),
            (31, &[1, 0, 0, 0]),
            template,
        ];
        let limited = Policy {
            needs_mark: true,
            needs_interface: true,
            ..expected
        };
        assert_eq!(parse(&bytes(1, &with_limits)), Some(limited));
        for direction in [0, 2, 4] {
            assert_eq!(parse(&bytes(direction, &[template])), None);
        }
        assert_eq!(parse(&bytes(1, &[])), None);
        assert_eq!(parse(&[0; 100]), None);
    }
}
