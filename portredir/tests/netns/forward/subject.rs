//! The ways in which a case runs: who redirects, on which hosts.

use crate::conformance::site::Offload;
use crate::lab::Family;

/// The program that redirects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// nftables, with which all others are compared.
    Nft,
    /// portredir, by this engine.
    Engine(&'static str),
}

/// All of them, the oracle first.
pub const SUBJECTS: [Subject; 3] = [Subject::Nft, Subject::Engine("auto"), Subject::Engine("tc")];

impl Subject {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Engine(name) => name,
        }
    }
}

/// The links between the host and its targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// F and G are on the ports of a bridge, whose packets cross the IP hooks of
    /// netfilter, or do not.
    Bridge(bool),
    /// F and G have an interface each.
    Interfaces,
}

/// One kind of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    pub layout: Layout,
    pub offload: Offload,
}

/// The kinds of hosts that the cases share.
pub const VARIANTS: [Variant; 3] = [
    Variant {
        layout: Layout::Bridge(true),
        offload: Offload::On,
    },
    Variant {
        layout: Layout::Bridge(true),
        offload: Offload::Off,
    },
    Variant {
        layout: Layout::Interfaces,
        offload: Offload::Off,
    },
];

impl Variant {
    /// In the words of an outcome that differs among variants.
    pub fn words(self, family: Family) -> String {
        let layout = match self.layout {
            Layout::Bridge(true) => "bridge",
            Layout::Bridge(false) => "bridge without br_netfilter",
            Layout::Interfaces => "interfaces",
        };
        let offload = match self.offload {
            Offload::On => "on",
            Offload::Off => "off",
        };
        format!("{layout}, offload {offload}, {family:?}")
    }
}

/// The hosts that have clients or servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Client,
    Host,
    F,
    G,
    O,
    Z,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Client, Self::Host, Self::F, Self::G, Self::O, Self::Z];

    /// The name in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Host => "host",
            Self::F => "F",
            Self::G => "G",
            Self::O => "O",
            Self::Z => "Z",
        }
    }
}
