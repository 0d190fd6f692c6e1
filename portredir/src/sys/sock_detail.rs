//! Sockets of this network namespace with their traffic and with what BPF programs keep at
//! them, by sock_diag(7). `CAP_BPF` is needed to read storages.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, Emitable as _, NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkPayload,
    NetlinkSerializable, Nla as _, NlasIterator, Parseable as _,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use portredir_common::flow::FlowKey;
use portredir_common::net::Protocol;

use crate::sys::netlink::ask_each;
use crate::sys::sock_destroy::Handle;
use crate::sys::sock_diag::{SockDiagError, key_of};

// `include/uapi/linux/inet_diag.h` and `sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_ID: u16 = 2;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// The part of the kind of an attribute that is no flag: `NLA_TYPE_MASK`.
const KIND: u16 = 0x3fff;
/// The length of the head of an attribute: its length and its kind.
const HEAD: u16 = 4;

/// The state of a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum TcpState {
    /// Both ends send and receive.
    Established = 1,
    /// This host has sent a SYN.
    SynSent,
    /// This host has answered a SYN.
    SynRecv,
    /// This host has sent a FIN.
    FinWait1,
    /// The peer has acknowledged the FIN of this host.
    FinWait2,
    /// The connection has ended, and late packets are waited for.
    TimeWait,
    /// There is no connection; a UDP socket without a peer.
    Close,
    /// The peer has sent a FIN.
    CloseWait,
    /// The peer and then this host have sent a FIN.
    LastAck,
    /// The socket waits for connections.
    Listen,
    /// Both ends have sent a FIN at once.
    Closing,
}

impl TcpState {
    /// The states of connections, in the order of their life.
    pub const CONNECTED: [Self; 9] = [
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait1,
        Self::FinWait2,
        Self::CloseWait,
        Self::LastAck,
        Self::Closing,
        Self::TimeWait,
    ];

    /// The name that ss(8) has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn-sent",
            Self::SynRecv => "syn-recv",
            Self::FinWait1 => "fin-wait-1",
            Self::FinWait2 => "fin-wait-2",
            Self::TimeWait => "time-wait",
            Self::Close => "unconnected",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::Listen => "listening",
            Self::Closing => "closing",
        }
    }

    fn of(number: u8) -> Self {
        let mut all = Self::CONNECTED.into_iter().chain([Self::Listen]);
        all.find(|state| *state as u8 == number)
            .unwrap_or(Self::Close)
    }
}

/// The traffic of a TCP connection, without headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The bytes that were received in order.
    pub received: u64,
    /// The bytes that were sent and acknowledged.
    pub acked: u64,
    /// The time since data were sent or received last.
    pub idle: Duration,
}

impl Traffic {
    /// Reads `struct tcp_info` of include/uapi/linux/tcp.h. The kernel's counts have a byte
    /// for each FIN, which is no data.
    fn of(info: &[u8], state: TcpState) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_ne_bytes(*info.get(at..)?.first_chunk()?));
        let (last_sent, last_received) = (word(44)?, word(52)?);
        let (acked, received) = (long(120)?, long(128)?);
        use TcpState::{CloseWait, Closing, FinWait2, LastAck, TimeWait};
        let has_received_fin = matches!(state, CloseWait | LastAck | Closing | TimeWait);
        let is_fin_acked = matches!(state, FinWait2 | TimeWait);
        Some(Self {
            received: received.saturating_sub(has_received_fin.into()),
            acked: acked.saturating_sub(is_fin_acked.into()),
            idle: Duration::from_millis(last_sent.min(last_received).into()),
        })
    }
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The addresses and ports of the socket, those of this host as the local ones.
    pub key: FlowKey,
    /// The state.
    pub state: TcpState,
    /// The inode of the socket, by which its processes are found; 0 without one.
    pub inode: u32,
    /// The traffic, of a TCP socket that is a whole one.
    pub traffic: Option<Traffic>,
    /// The values at the socket, each with the ID of its map.
    pub stored: Vec<(u32, Vec<u8>)>,
    /// The name by which the kernel knows the socket.
    pub handle: Handle,
}

impl Socket {
    /// The value of a map at this socket.
    #[must_use]
    pub fn stored(&self, map: u32) -> Option<&[u8]> {
        let mut stored = self.stored.iter();
        let (_, value) = stored.find(|(id, _)| *id == map)?;
        Some(value)
    }
}

/// The question for sockets.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The protocol.
    pub protocol: Protocol,
    /// The states of sockets to list.
    pub states: &'a [TcpState],
    /// The socket storages of which values are wanted.
    pub storages: &'a [BorrowedFd<'a>],
}

/// Calls a function with each socket. Sockets come one by one, so that no number of them
/// needs much memory.
///
/// # Errors
///
/// [`SockDiagError`].
pub fn each(
    question: Question<'_>,
    mut on_socket: impl FnMut(Socket),
) -> Result<(), SockDiagError> {
    let Question {
        protocol,
        states,
        storages,
    } = question;
    let states = states.iter().fold(StateFlags::empty(), |all, state| {
        all | StateFlags::from_bits_truncate(1 << (*state as u8))
    });
    for (family, socket_id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let extensions = match protocol {
            Protocol::Tcp => ExtensionFlags::INFO,
            Protocol::Udp => ExtensionFlags::empty(),
        };
        let request = InetRequest {
            family,
            protocol: protocol as u8,
            extensions,
            states: states.clone(),
            socket_id,
        };
        let payload = NetlinkPayload::InnerMessage(Message::Question(bytes_of(&request, storages)));
        ask_each(NETLINK_SOCK_DIAG, payload, NLM_F_DUMP, |answer| {
            if let Message::Answer(answer) = answer {
                on_socket(socket(protocol, *answer));
            }
        })
        .map_err(|source| SockDiagError::new(protocol, source))?;
    }
    Ok(())
}

/// The bytes of a request, with an attribute that names the maps.
fn bytes_of(request: &InetRequest, storages: &[BorrowedFd<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    if storages.is_empty() {
        return bytes;
    }
    let maps = storages.iter().flat_map(|map| {
        let head = [HEAD + 4, SK_DIAG_BPF_STORAGE_REQ_MAP_FD].map(u16::to_ne_bytes);
        head.into_iter()
            .flatten()
            .chain(map.as_raw_fd().to_ne_bytes())
    });
    let maps: Vec<u8> = maps.collect();
    let len = HEAD + u16::try_from(maps.len()).expect("a few maps");
    for word in [len, INET_DIAG_REQ_SK_BPF_STORAGES] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(maps);
    bytes
}

fn socket(protocol: Protocol, answer: InetResponse) -> Socket {
    let state = TcpState::of(answer.header.state);
    let mut socket = Socket {
        key: key_of(&answer.header.socket_id),
        state,
        inode: answer.header.inode,
        traffic: None,
        stored: Vec::new(),
        handle: Handle {
            protocol,
            family: answer.header.family,
            id: answer.header.socket_id,
        },
    };
    for attribute in answer.nlas {
        match attribute {
            Nla::TcpInfo(info) => socket.traffic = Traffic::of(&info, state),
            Nla::Other(other) if other.kind() & KIND == INET_DIAG_SK_BPF_STORAGES => {
                let mut bytes = vec![0; other.value_len()];
                other.emit_value(&mut bytes);
                let storages = NlasIterator::new(&bytes).filter_map(Result::ok);
                let storages = storages.filter(|nla| nla.kind() & KIND == SK_DIAG_BPF_STORAGE);
                socket.stored = storages.filter_map(|nla| stored(nla.value())).collect();
            }
            _ => {}
        }
    }
    socket
}

/// The ID of a map, and its value.
fn stored(attributes: &[u8]) -> Option<(u32, Vec<u8>)> {
    let attribute = |kind: u16| {
        let mut all = NlasIterator::new(attributes).filter_map(Result::ok);
        Some(all.find(|nla| nla.kind() & KIND == kind)?.value().to_vec())
    };
    let id = attribute(SK_DIAG_BPF_STORAGE_MAP_ID)?;
    let id = u32::from_ne_bytes(id.try_into().ok()?);
    Some((id, attribute(SK_DIAG_BPF_STORAGE_MAP_VALUE)?))
}

/// A message of sock_diag. The library's type has no room for attributes of a request.
#[derive(Debug)]
enum Message {
    Question(Vec<u8>),
    Answer(Box<InetResponse>),
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Question(bytes) => bytes.len(),
            Self::Answer(_) => 0,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Self::Question(bytes) = self {
            buffer.copy_from_slice(bytes);
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        InetResponse::parse(payload).map(|answer| Self::Answer(Box::new(answer)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use portredir_common::net::Port;

    use super::*;

    /// Needs no privileges without storages.
    #[test]
    fn traffic_is_that_of_both_directions_without_the_fin() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let addr = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(addr).expect("a connection");
        let (mut server, _) = listener.accept().expect("a connection");
        client.write_all(b"question").expect("a question");
        server.read_exact(&mut [0; 8]).expect("a question");
        server.write_all(b"answers").expect("an answer");
        client.read_exact(&mut [0; 7]).expect("an answer");
        client
            .shutdown(std::net::Shutdown::Write)
            .expect("no more questions");
        assert_eq!(server.read(&mut [0; 8]).expect("an end"), 0);
        let mut found = Vec::new();
        let question = Question {
            protocol: Protocol::Tcp,
            states: &TcpState::CONNECTED,
            storages: &[],
        };
        each(question, |socket| {
            if socket.key.local_port == Port::new(addr.port()) {
                found.push(socket);
            }
        })
        .expect("sockets");
        let [socket] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(socket.state, TcpState::CloseWait);
        assert_ne!(socket.inode, 0);
        let traffic = socket.traffic.expect("traffic");
        assert_eq!((traffic.received, traffic.acked), (8, 7));
        assert!(traffic.idle < Duration::from_secs(60));
    }
}
