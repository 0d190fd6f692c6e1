//! Clients behind IPsec policies: their replies are encrypted before TC could restore the
//! port.
//!
//! A policy takes a packet before the packet reaches its interface. The decrypted packet of
//! a client comes to TC, but the reply that leaves there is one of ESP. A socket lookup
//! needs no rewritten reply, so with `auto` these connections are left to listeners. IPsec
//! by routes, with xfrm and VTI interfaces, has an interface of its own for plain packets.

use std::collections::BTreeSet;

use ipnet::IpNet;
use portredir_common::net::Addr;

use super::coverage::Coverage;
use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::host::snapshot::{Interface, Snapshot};
use crate::rule::Protocols;
use crate::sys::xfrm::Policy;

/// The consequence of IPsec policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipsec {
    /// The interfaces on which listeners get the connections out of IPsec.
    pub by_socket: BTreeSet<u32>,
    /// The note on clients behind the policies.
    pub note: Option<String>,
}

impl Snapshot {
    pub(super) fn ipsec(&self, settings: &Settings, coverage: &Coverage<'_>) -> Ipsec {
        let is_tcp = settings.rules.iter().any(|r| r.protocols != Protocols::Udp);
        let is_auto = settings.engine == EngineChoice::Auto;
        let policies: Vec<_> = self.encrypting().collect();
        let [first, others @ ..] = policies.as_slice() else {
            return Ipsec::default();
        };
        // A socket lookup is all that such a client needs.
        if settings.engine == EngineChoice::Socket {
            return Ipsec::default();
        }
        let mut by_socket = BTreeSet::new();
        if is_auto && is_tcp {
            let selected = coverage.selected().keys();
            by_socket.extend(selected.filter(|index| self.delivers_by_policy(**index)));
        }
        let mut note = format!("IPsec policy {} to {}", first.src, first.dst);
        if !others.is_empty() {
            note += &format!(" and {} more", others.len());
        }
        note += ": replies are encrypted before TC can restore their port; ";
        let udp = settings
            .rules
            .iter()
            .find(|r| r.protocols != Protocols::Tcp);
        note += &match (is_auto, is_tcp, udp) {
            (false, ..) => "clients behind it are not redirected; use --engine auto, which \
                            redirects their TCP connections"
                .to_owned(),
            (true, true, None) => BY_SOCKET.to_owned(),
            (true, true, Some(rule)) => {
                format!("{BY_SOCKET}; UDP of these clients is not redirected (rule `{rule}`)")
            }
            (true, false, _) => "UDP of clients behind it is not redirected".to_owned(),
        };
        let mut forward = settings.rules.iter().filter(|r| r.forward().is_some());
        if let Some(rule) = forward.next().filter(|_| is_auto) {
            note += &format!("; these clients do not get to the targets of rule `{rule}`");
        }
        Ipsec {
            by_socket,
            note: Some(note),
        }
    }

    /// The policies that encrypt replies of this host.
    fn encrypting(&self) -> impl Iterator<Item = &Policy> {
        let has_vti = self
            .interfaces
            .values()
            .any(|i| matches!(i.kind.as_deref(), Some("vti" | "vti6")));
        self.policies.iter().filter(move |policy| {
            let is_by_route = policy.needs_interface || (policy.needs_mark && has_vti);
            !is_by_route && self.has_addr_in(&policy.src)
        })
    }

    /// Whether an address of this host, or a network of such addresses, meets a prefix.
    fn has_addr_in(&self, prefix: &IpNet) -> bool {
        const V4: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let first = Addr::from(prefix.network()).octets();
        let is_v4 = prefix.addr().is_ipv4();
        let is_same = |octets: &[u8; 16], len: u8| {
            let (a, b) = (u128::from_be_bytes(*octets), u128::from_be_bytes(first));
            let is_same_family = octets.starts_with(&V4) == is_v4;
            is_same_family && (a ^ b).leading_zeros() >= u32::from(len)
        };
        let family_bits = if is_v4 { 96 } else { 0 };
        let len = prefix.prefix_len() + family_bits;
        let mut addrs = self.local.addrs.keys();
        let mut networks = self.local.networks.iter();
        addrs.any(|addr| is_same(addr, len))
            || networks.any(|network| is_same(&network.addr, len.min(network.prefix_len)))
    }

    /// Whether plain packets out of IPsec by policy come in on an interface.
    fn delivers_by_policy(&self, index: u32) -> bool {
        self.interfaces
            .get(&index)
            .is_some_and(|interface| !interface.is_loopback() && !interface.is_ipsec_by_route())
    }
}

impl Interface {
    fn is_ipsec_by_route(&self) -> bool {
        matches!(self.kind.as_deref(), Some("vti" | "vti6" | "xfrm"))
    }
}

/// The way in which `auto` serves TCP clients behind a policy.
const BY_SOCKET: &str = "TCP connections of clients behind it are given to listeners \
                         (sk_lookup), and INPUT sees the port before redirection";
