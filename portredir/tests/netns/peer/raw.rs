//! Packets that no ordinary socket would send: with any source, any flags, truncated
//! anywhere.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, PacketBuilder};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrStorage,
    sendmmsg, socket,
};

use crate::lab::Family;
use crate::lab::namespace::Namespace;

/// Packets that are handed to the kernel at a time.
const BATCH: usize = 64;

/// Sends packets from the IP header on, as they are.
pub struct RawSender {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl RawSender {
    /// In a namespace, whose routes the packets take.
    pub fn new(namespace: &Namespace) -> Self {
        let open = |family| {
            let flags = SockFlag::SOCK_CLOEXEC;
            socket(family, SockType::Raw, flags, SockProtocol::Raw).expect("a raw socket")
        };
        namespace.enter(|| Self {
            v4: open(AddressFamily::Inet),
            v6: open(AddressFamily::Inet6),
        })
    }

    /// Sends packets of one IP version.
    pub fn send(&self, to: IpAddr, packets: &[Vec<u8>]) {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        for batch in packets.chunks(BATCH) {
            let slices: Vec<_> = batch.iter().map(|packet| [IoSlice::new(packet)]).collect();
            let to = vec![Some(SockaddrStorage::from(SocketAddr::new(to, 0))); batch.len()];
            let mut headers = MultiHeaders::preallocate(batch.len(), None);
            let fd = socket.as_raw_fd();
            let sent = sendmmsg(fd, &mut headers, &slices, &to, [], MsgFlags::empty());
            let sent = sent.expect("send by a raw socket").count();
            assert_eq!(sent, batch.len(), "packets that were sent");
        }
    }
}

/// Sends what is made of one number after the other, while it is held.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// `make` says where a packet goes, and what it is. After each batch there is
    /// a pause.
    pub fn start(
        namespace: &Namespace,
        pause: Duration,
        make: impl Fn(u32) -> (IpAddr, Vec<u8>) + Send + 'static,
    ) -> Self {
        let sender = RawSender::new(namespace);
        let stop = Arc::new(AtomicBool::default());
        let sent = Arc::new(AtomicUsize::new(0));
        let thread = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            std::thread::spawn(move || {
                let mut number = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    let (mut v4, mut v6) = (Vec::new(), Vec::new());
                    let mut to = [None; 2];
                    for _ in 0..BATCH {
                        let (addr, packet) = make(number);
                        number = number.wrapping_add(1);
                        let is_v6 = addr.is_ipv6();
                        to[usize::from(is_v6)] = Some(addr);
                        if is_v6 { &mut v6 } else { &mut v4 }.push(packet);
                    }
                    for (to, packets) in to.into_iter().zip([v4, v6]) {
                        if let Some(to) = to {
                            sender.send(to, &packets);
                        }
                    }
                    sent.fetch_add(BATCH, Ordering::Relaxed);
                    std::thread::sleep(pause);
                }
            })
        };
        Self {
            stop,
            sent,
            thread: Some(thread),
        }
    }

    /// Packets so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it; how many packets there were.
    pub fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("ended once");
        thread.join().expect("the flood sends");
        self.sent()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Networks of no host: what comes from there is forged. The host has a way back,
/// so that its answers go out.
pub fn add_spoofed_networks(host: &Namespace) {
    host.sysctl("ipv4/conf/all/rp_filter", "0");
    host.sysctl("ipv4/conf/default/rp_filter", "0");
    host.ip(&format!(
        "route add 198.18.0.0/15 via {}\nroute add fd19::/16 via {}",
        Family::V4.addr(1, 2),
        Family::V6.addr(1, 2)
    ));
}

/// An address of nowhere, another one for each number below 2^17.
pub fn spoofed_addr(family: Family, number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([198, 18 | a & 1, b, c]),
        Family::V6 => IpAddr::from([0xfd19, 0, 0, u16::from(a), 0, 0, u16::from(b), c.into()]),
    }
}

/// The kinds of forged TCP segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    Syn,
    Ack,
    Rst,
    RstAck,
    FinAck,
    /// Two bytes of payload, which the client did not send.
    Data,
}

/// A TCP segment with a sequence number and, but for SYN and RST, one that it
/// acknowledges.
pub fn tcp(from: SocketAddr, to: SocketAddr, segment: Segment, (seq, ack): (u32, u32)) -> Vec<u8> {
    let builder = ip(from.ip(), to.ip()).tcp(from.port(), to.port(), seq, 64_000);
    let builder = match segment {
        Segment::Syn => builder.syn(),
        Segment::Ack => builder.ack(ack),
        Segment::Rst => builder.rst(),
        Segment::RstAck => builder.rst().ack(ack),
        Segment::FinAck => builder.fin().ack(ack),
        Segment::Data => builder.psh().ack(ack),
    };
    let payload: &[u8] = if segment == Segment::Data { b"no" } else { b"" };
    let mut packet = Vec::with_capacity(64);
    builder.write(&mut packet, payload).expect("a segment");
    packet
}

/// A UDP datagram.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let builder = ip(from.ip(), to.ip()).udp(from.port(), to.port());
    let mut packet = Vec::with_capacity(48 + payload.len());
    builder.write(&mut packet, payload).expect("a datagram");
    packet
}

fn ip(from: IpAddr, to: IpAddr) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    const TTL: u8 = 64;
    let headers = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = etherparse::Ipv4Header::new(0, TTL, 6.into(), from.octets(), to.octets());
            etherparse::IpHeaders::Ipv4(header.expect("short"), Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = etherparse::Ipv6Header {
                hop_limit: TTL,
                source: from.octets(),
                destination: to.octets(),
                ..Default::default()
            };
            etherparse::IpHeaders::Ipv6(header, Default::default())
        }
        _ => panic!("{from} and {to} are of two versions"),
    };
    PacketBuilder::ip(headers)
}

/// The kinds of ICMP errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nothing listens on the port.
    PortUnreachable,
    /// Packets are longer than this.
    TooBig(u16),
    /// The way is too long.
    TimeExceeded,
}

/// An ICMP error about a packet, of which it quotes the first bytes.
pub fn error(from: IpAddr, to: IpAddr, error: Error, quote: &[u8]) -> Vec<u8> {
    use etherparse::icmpv4::{DestUnreachableHeader as Unreachable4, TimeExceededCode as Time4};
    use etherparse::icmpv6::{DestUnreachableCode as Unreachable6, TimeExceededCode as Time6};
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let kind = match error {
                Error::PortUnreachable => Icmpv4Type::DestinationUnreachable(Unreachable4::Port),
                Error::TooBig(next_hop_mtu) => {
                    Icmpv4Type::DestinationUnreachable(Unreachable4::FragmentationNeeded {
                        next_hop_mtu,
                    })
                }
                Error::TimeExceeded => Icmpv4Type::TimeExceeded(Time4::TtlExceededInTransit),
            };
            let header = Icmpv4Header::with_checksum(kind, quote);
            let builder = ip(from, to).icmpv4(header.icmp_type);
            builder.write(&mut packet, quote).expect("an error");
        }
        (IpAddr::V6(from6), IpAddr::V6(to6)) => {
            let kind = match error {
                Error::PortUnreachable => Icmpv6Type::DestinationUnreachable(Unreachable6::Port),
                Error::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
                Error::TimeExceeded => Icmpv6Type::TimeExceeded(Time6::HopLimitExceeded),
            };
            let (from6, to6) = (from6.octets(), to6.octets());
            let header = Icmpv6Header::with_checksum(kind, from6, to6, quote).expect("short");
            let builder = ip(from, to).icmpv6(header.icmp_type);
            builder.write(&mut packet, quote).expect("an error");
        }
        _ => panic!("{from} and {to} are of two versions"),
    }
    packet
}
