//! A raw socket on an interface: what is sent as it is, and what arrives.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendmsg,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::frame::{Ip, Sum};
use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;

// Each frame has a `virtio_net_hdr` before it (packet(7)): with it the sender
// leaves a checksum to the hardware, and the receiver sees that it did.
nix::setsockopt_impl!(
    VnetHeader,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    u32,
    nix::sys::socket::sockopt::SetStruct<u32>
);
nix::setsockopt_impl!(
    IgnoreOutgoing,
    libc::SOL_PACKET,
    libc::PACKET_IGNORE_OUTGOING,
    u32,
    nix::sys::socket::sockopt::SetStruct<u32>
);

#[derive(Clone, Copy, Debug)]
struct VnetHeader;

#[derive(Clone, Copy, Debug)]
struct IgnoreOutgoing;

/// Bytes of a `virtio_net_hdr`.
const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;

/// A raw socket on an interface.
pub struct Wire {
    fd: OwnedFd,
    addr: LinkAddr,
}

/// A frame that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub frame: Vec<u8>,
    /// Whether the sender left its checksum to the hardware.
    pub is_partial: bool,
}

impl Wire {
    /// Hears all that arrives there from now on.
    pub fn open(namespace: &Namespace, interface: &str) -> Self {
        namespace.enter(|| {
            let addr = link_addr(interface);
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                flags,
                SockProtocol::EthAll,
            );
            let fd = fd.expect("a raw socket");
            bind(fd.as_raw_fd(), &addr).expect("bind to an interface");
            setsockopt(&fd, VnetHeader, &1).expect("PACKET_VNET_HDR");
            setsockopt(&fd, IgnoreOutgoing, &1).expect("PACKET_IGNORE_OUTGOING");
            Self { fd, addr }
        })
    }

    /// The address of the interface.
    pub fn mac(&self) -> [u8; 6] {
        self.addr.addr().expect("an Ethernet address")
    }

    /// Sends an IP packet to an Ethernet address.
    pub fn send(&self, to: [u8; 6], packet: &[u8]) {
        self.send_frame(&ethernet(to, self.mac(), packet), None);
    }

    /// Sends a whole packet; its checksum is left to the hardware when it says
    /// so.
    pub fn send_ip(&self, to: [u8; 6], ip: &Ip) {
        let mut packet = ip.whole();
        packet.extend(vec![0xee; ip.padding]);
        let at = 14 + ip.header_len();
        let partial = (ip.sum == Sum::Partial).then_some((at, ip.segment.check));
        self.send_frame(&ethernet(to, self.mac(), &packet), partial);
    }

    /// Sends a frame as it is. `partial` says where the segment begins whose
    /// checksum is to be filled in, and where in the segment that is.
    pub fn send_frame(&self, frame: &[u8], partial: Option<(usize, usize)>) {
        let mut header = [0; HEADER];
        if let Some((start, offset)) = partial {
            let [start, offset] = [start, offset].map(|n| u16::try_from(n).expect("small"));
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        let parts = [IoSlice::new(&header), IoSlice::new(frame)];
        let send = || {
            let none: Option<&LinkAddr> = None;
            match sendmsg(self.fd.as_raw_fd(), &parts, &[], MsgFlags::empty(), none) {
                // The far side is behind, as in a flood, and the frame is dropped.
                Err(Errno::ENOBUFS) => None,
                sent => Some(sent.expect("send a frame")),
            }
        };
        wait_for("a frame to be sent", send);
    }

    /// Throws away what arrived so far.
    pub fn forget(&self) {
        let mut start = [0; HEADER + 14];
        while recv(self.fd.as_raw_fd(), &mut start, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    /// The next frame that arrives within some time.
    pub fn receive(&self, limit: Duration) -> Option<Received> {
        let mut buffer = vec![0; HEADER + 70_000];
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let micros = i64::try_from(left.as_micros().max(1)).expect("a short time");
            setsockopt(&self.fd, ReceiveTimeout, &TimeVal::microseconds(micros))
                .expect("a timeout");
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => {
                    return Some(Received {
                        frame: buffer[HEADER..len].to_vec(),
                        is_partial: buffer[0] & NEEDS_CSUM != 0,
                    });
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                Err(errno) => panic!("receive frames: {}", io::Error::from(errno)),
            }
        }
    }
}

/// An Ethernet frame around an IP packet.
pub fn ethernet(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = match packet.first().map_or(4, |byte| byte >> 4) {
        6 => [0x86, 0xdd],
        _ => [0x08, 0x00],
    };
    [&to[..], &from, &kind, packet].concat()
}

/// Index and address of an interface of this namespace.
fn link_addr(interface: &str) -> LinkAddr {
    let addrs = getifaddrs().expect("interfaces");
    let mut links = addrs
        .filter(|addr| addr.interface_name == interface)
        .filter_map(|addr| addr.address?.as_link_addr().copied());
    links.next().expect(interface)
}

/// The Ethernet address of an interface.
pub fn mac(namespace: &Namespace, interface: &str) -> [u8; 6] {
    let addr = namespace.enter(|| link_addr(interface));
    addr.addr().expect("an Ethernet address")
}
