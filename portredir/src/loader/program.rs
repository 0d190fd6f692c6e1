//! The programs of the object, by the hook they are attached to.

use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps, Xdp};
use portredir_common::wire::frame::Link;

use crate::host::snapshot::Header;
use crate::sys::bpf_query::AttachType;

pub const XDP_FRAGS: &str = "portredir_frags";
/// The socket lookup that knows the interface.
pub const LOOKUP: &str = "portredir_look";
pub const LOOKUP_EVERYWHERE: &str = "portredir_lkall";
pub const REGISTER: &str = "portredir_reg";
/// The name of the program that sees the connections that servers accept.
pub const ACCEPT: &str = "portredir_acc";
/// Gives SYNs on `lo` to the listener on the target.
pub const ASSIGN: &str = "portredir_lo";
pub const SCAN: &str = "portredir_scan";
/// The hooks of the programs for local clients, in the order of [`CLIENT`].
const CLIENT_HOOKS: [AttachType; 8] = [
    AttachType::Recvmsg4,
    AttachType::Recvmsg6,
    AttachType::Getpeername4,
    AttachType::Getpeername6,
    AttachType::Sendmsg4,
    AttachType::Sendmsg6,
    AttachType::Connect4,
    AttachType::Connect6,
];
/// The programs for local clients.
pub const CLIENT: [&str; 8] = [
    // Programs that answer come before programs that redirect: a client must not be
    // redirected before it can learn the address that it connected to.
    "portredir_recv4",
    "portredir_recv6",
    "portredir_peer4",
    "portredir_peer6",
    "portredir_send4",
    "portredir_send6",
    "portredir_conn4",
    "portredir_conn6",
];

/// The name as a constant, if a program has this name.
pub fn known(name: &str) -> Option<&'static str> {
    let others = [
        XDP_FRAGS,
        LOOKUP,
        LOOKUP_EVERYWHERE,
        REGISTER,
        ACCEPT,
        ASSIGN,
    ];
    let by_link = [Link::Ethernet, Link::Ip].map(xdp);
    let by_header = Header::ALL.map(|header| [ingress(header), egress(header)]);
    let on_packets = by_link.iter().chain(by_header.as_flattened());
    let all = others.iter().chain(&CLIENT).chain(on_packets);
    all.copied().find(|known| *known == name)
}

/// The hook of a program that is attached to a cgroup or to the network namespace; `None`
/// for programs of interfaces.
pub fn shared_hook(name: &str) -> Option<AttachType> {
    match name {
        LOOKUP | LOOKUP_EVERYWHERE => Some(AttachType::SkLookup),
        REGISTER | ACCEPT => Some(AttachType::SockOps),
        _ => {
            let mut hooks = CLIENT.iter().zip(CLIENT_HOOKS);
            hooks.find_map(|(client, hook)| (*client == name).then_some(hook))
        }
    }
}

/// Whether a program is attached by XDP.
pub fn is_xdp(name: &str) -> bool {
    name == XDP_FRAGS || [Link::Ethernet, Link::Ip].map(xdp).contains(&name)
}

/// Whether a TC program is for packets that come in.
pub fn is_ingress(name: &str) -> bool {
    name == ASSIGN || Header::ALL.map(ingress).contains(&name)
}

/// Whether a program finds the packet by the offset of the network header.
pub fn is_outer(name: &str) -> bool {
    name == ingress(Header::Outer)
}

/// The work of a program that redirects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Rewrites packets that come in.
    Packets,
    /// Gives connections to listeners.
    Lookup {
        /// Whether connections that come in by any interface are meant.
        is_everywhere: bool,
    },
    /// Points local clients at the target.
    Clients,
}

impl Role {
    /// The work of the program with a name; `None` for one that does not redirect, such as
    /// one that rewrites replies.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        match name {
            LOOKUP => Some(Self::Lookup {
                is_everywhere: false,
            }),
            LOOKUP_EVERYWHERE => Some(Self::Lookup {
                is_everywhere: true,
            }),
            "portredir_conn4" => Some(Self::Clients),
            _ if is_xdp(name) || Header::ALL.map(ingress).contains(&name) => Some(Self::Packets),
            _ => None,
        }
    }
}

pub const fn xdp(link: Link) -> &'static str {
    match link {
        Link::Ethernet => "portredir_xdp",
        Link::Ip => "portredir_xdpip",
    }
}

pub const fn ingress(header: Header) -> &'static str {
    match header {
        Header::Ethernet => "portredir_in",
        Header::Ip => "portredir_in_ip",
        Header::Outer => "portredir_in_nh",
    }
}

pub const fn egress(header: Header) -> &'static str {
    match header {
        Header::Ethernet => "portredir_out",
        Header::Ip => "portredir_outip",
        Header::Outer => "portredir_outnh",
    }
}

/// A kind of program that is loaded on first use.
pub trait Load {
    /// Loads the program into the kernel.
    ///
    /// # Errors
    ///
    /// When the verifier refuses it.
    fn load_into_kernel(&mut self) -> Result<(), ProgramError>;
}

impl Load for Xdp {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Load for SchedClassifier {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Load for SkLookup {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Load for SockOps {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Load for CgroupSockAddr {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}
