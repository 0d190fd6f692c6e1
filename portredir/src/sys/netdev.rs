//! The XDP features of network devices, and the kernel's message when it refuses a
//! program: neither rtnetlink nor bpf(2) has them.
//!
//! Each request has its own socket; the kernel answers before `send` returns, so no call
//! waits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::programs::XdpMode;
use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_DUMP, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};

use crate::sys::netlink::{NetlinkError, ask};

/// The XDP features of a driver: `enum netdev_xdp_act` of include/uapi/linux/netdev.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Native XDP: `NETDEV_XDP_ACT_BASIC`.
    pub const BASIC: u64 = 1;
    /// Packets of several buffers: `NETDEV_XDP_ACT_RX_SG`.
    pub const RX_SG: u64 = 32;

    /// Whether the driver has native XDP.
    #[must_use]
    pub const fn has_native(self) -> bool {
        self.0 & Self::BASIC != 0
    }

    /// Whether native XDP accepts packets of several buffers (frags).
    #[must_use]
    pub const fn has_frags(self) -> bool {
        self.0 & Self::RX_SG != 0
    }
}

/// Reads the XDP features of all devices of this network namespace, by index. Linux 6.3
/// has the netlink family; the request needs no privileges.
///
/// # Errors
///
/// [`NetlinkError`], on older kernels as well.
pub fn xdp_features() -> Result<BTreeMap<u32, XdpFeatures>, NetlinkError> {
    let family = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(Device::family_name().into())],
    });
    let id = ask(NETLINK_GENERIC, family.into(), NLM_F_ACK)?
        .into_iter()
        .flat_map(|family| family.payload.nlas)
        .find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        })
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let mut devices = GenlMessage::from_payload(Device::default());
    devices.set_resolved_family_id(id);
    Ok(ask(NETLINK_GENERIC, devices.into(), NLM_F_DUMP)?
        .into_iter()
        .map(|device| (device.payload.index, device.payload.xdp_features))
        .collect())
}

/// Asks the kernel why it refuses an XDP program. The failed bpf(2) call returned only an
/// error number, so the program is attached once more with netlink, which returns a
/// message. If that succeeds, the program is detached again.
#[must_use]
pub fn refusal(index: u32, program: BorrowedFd<'_>, mode: XdpMode) -> Option<String> {
    // include/uapi/linux/if_link.h
    const UPDATE_IF_NOEXIST: u32 = 1;
    const REPLACE: u32 = 1 << 4;
    let mode = match mode {
        XdpMode::Default => 0,
        XdpMode::Skb => 1 << 1,
        XdpMode::Driver => 1 << 2,
        XdpMode::Hardware => 1 << 3,
    };
    let set = |attributes| {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Xdp(attributes)];
        let message = RouteNetlinkMessage::SetLink(message);
        ask(NETLINK_ROUTE, message.into(), NLM_F_ACK)
    };
    let fd = program.as_raw_fd();
    let result = set(vec![
        LinkXdp::Fd(fd),
        LinkXdp::Flags(mode | UPDATE_IF_NOEXIST),
    ]);
    match result {
        Err(NetlinkError::Kernel { words, .. }) => words,
        Err(NetlinkError::Io(_) | NetlinkError::Decode(_)) => None,
        Ok(_) => {
            let undone = set(vec![
                LinkXdp::Fd(-1),
                LinkXdp::ExpectedFd(fd.cast_unsigned()),
                LinkXdp::Flags(mode | REPLACE),
            ]);
            if let Err(error) = undone {
                log::warn!("interface {index}: cannot detach the XDP program of a probe: {error}");
            }
            None
        }
    }
}

/// A message of the family `netdev`: the request is `NETDEV_CMD_DEV_GET` without
/// attributes, and each answer has one device.
#[derive(Clone, Copy, Debug, Default)]
struct Device {
    index: u32,
    xdp_features: XdpFeatures,
}

impl GenlFamily for Device {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        1
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        0
    }

    fn emit(&self, _: &mut [u8]) {}
}

impl ParseableParametrized<[u8], GenlHeader> for Device {
    fn parse_with_param(payload: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        const IFINDEX: u16 = 1;
        const XDP_FEATURES: u16 = 3;
        let mut device = Self::default();
        for attribute in NlasIterator::new(payload) {
            let attribute = attribute?;
            match (attribute.kind(), attribute.value()) {
                (IFINDEX, &[a, b, c, d]) => device.index = u32::from_ne_bytes([a, b, c, d]),
                (XDP_FEATURES, value) => {
                    let value = value
                        .try_into()
                        .map_err(|_| "the XDP features attribute is not 64 bits long")?;
                    device.xdp_features = XdpFeatures(u64::from_ne_bytes(value));
                }
                _ => {}
            }
        }
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_no_native_xdp() {
        match xdp_features() {
            Ok(features) => assert!(!features[&1].has_native()),
            Err(error) => eprintln!("skipped, needs Linux 6.3: {error}"),
        }
    }
}
