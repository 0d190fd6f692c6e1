//! The verdict on a packet, and the reason for it.
//!
//! There is one list: [`Reason`] is the error inside the datapath, the index of the
//! counter, the name in the output and the word in the log.

/// The action of the hook on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The packet goes on: to the next program and to the stack.
    Pass,
    /// The packet ends here.
    Drop,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $text:literal, $verdict:ident;)+) => {
        /// Why a packet was treated as it was.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason { $($(#[doc = $doc])+ $name),+ }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in counters, metrics and logs: `snake_case`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// The packets with this reason in plain words, as in a table for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// The reason of a number, as a BPF function returns it.
            #[inline(always)]
            #[must_use]
            pub const fn from_number(number: u32) -> Self {
                $(if number == Self::$name as u32 {
                    return Self::$name;
                })+
                Self::NoRule
            }

            /// The verdict on a packet with this reason.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict),+ }
            }
        }
    };
}

reasons! {
    /// There is nothing to do: no rule for this port, or not TCP, UDP or an ICMP error.
    /// All other traffic of the host ends here, so it is not counted.
    NoRule = "no_rule", "no rule for the port", Pass;
    /// The destination port was rewritten to the target port. Counted per rule instead.
    Redirected = "redirected", "redirected", Pass;
    /// The source port of a reply was rewritten to the port that the client connected to.
    /// Counted per rule instead, but for local clients.
    Restored = "restored", "replies rewritten", Pass;
    /// The packet belongs to traffic of the target port that was never redirected.
    Direct = "direct", "direct connections to the target port", Pass;
    /// The client port of direct traffic was changed to avoid a collision.
    DirectRemapped = "direct_remapped",
        "direct connections whose client port was changed", Pass;
    /// An ICMP error about a redirected flow; the quoted ports were rewritten.
    IcmpTranslated = "icmp_translated", "ICMP errors about redirected flows, rewritten", Pass;
    /// An ICMP error that quotes no redirected flow.
    IcmpForeign = "icmp_foreign", "ICMP errors about other flows", Pass;
    /// A rule has the port, but the destination is not this host.
    NotLocal = "not_local", "packets to other hosts", Pass;
    /// Lengths in the headers contradict each other; the stack decides.
    Malformed = "malformed", "malformed packets, left to the kernel", Pass;
    /// An IPv6 extension header hides or protects the ports.
    ExtensionHeader = "extension_header", "IPv6 extension headers that hide the ports", Pass;
    /// The packet belongs to a connection that a server on the destination port holds,
    /// or to a flow that this host, or a host behind it, began at that port.
    ForeignFlow = "foreign_flow", "flows of servers and clients on the listen port", Pass;
    /// A new flow to a port whose rule was removed: it goes to the port itself.
    Draining = "draining", "new flows after their rule was removed", Pass;
    /// A new flow while nobody listens on the target port: it goes to the port itself.
    NotListening = "not_listening", "new flows while nobody listens on the target port", Pass;
    /// Another host connected to a target port that is hidden: the packet goes to port 0,
    /// where nobody can listen, so that the kernel answers as for a closed port.
    Hidden = "hidden", "refused: direct access to a hidden target port", Pass;
    /// A first fragment without the TCP checksum (RFC 1858) cannot be rewritten.
    FragmentTooShort = "fragment_too_short",
        "dropped: first fragment too short to rewrite", Drop;
    /// Another flow holds the client's port and no free one was found.
    NoFreePort = "no_free_port", "dropped: no free client port", Drop;
    /// The flow table refused the entry; the reply would leave without a rewrite.
    TableFull = "table_full", "dropped: flow table full", Drop;
    /// Nobody listens on the target port, or not on this address (engine `socket`).
    NoListener = "no_listener", "refused: nobody listens on the target port", Drop;
    /// A rewrite failed half-way.
    WriteFailed = "write_failed", "dropped: the kernel refused to rewrite", Drop;
    /// Rules name the port, and the conditions of none hold: the address, the client or the
    /// interface is another one. New reasons come behind this one, so that counters of
    /// earlier programs keep their places.
    NoMatch = "no_match", "packets that meet the conditions of no rule for their port", Pass;
    /// No target of the rule is up: a new flow goes to the port that it was meant for.
    NoTarget = "no_target", "new flows while no target is up", Pass;
    /// No target of the rule is up, and the rule drops new flows then.
    NoTargetDropped = "no_target_dropped", "dropped: new flows while no target is up", Drop;
    /// A fragment cannot be forwarded: the fragments after the first have no ports.
    FragmentForwarded = "fragment_forwarded",
        "dropped: fragments to a target with an address", Drop;
    /// An ICMP redirect of this host about a forwarded flow would name the target to the
    /// client, which then would not reach it.
    IcmpRedirect = "icmp_redirect", "dropped: ICMP redirects about forwarded flows", Drop;
    /// A socket of this host that is bound to a loopback address cannot reach a target with
    /// an address.
    BoundToLoopback = "bound_to_loopback",
        "local clients that are bound to a loopback address, left alone", Pass;
    /// A socket of this host names an IPv6 address, the rule has IPv4 targets alone, and the
    /// socket cannot reach them: it is for IPv6 alone, it is bound to an IPv6 address, or it
    /// is for UDP and not connected.
    CannotReachIpv4 = "cannot_reach_ipv4",
        "local IPv6 clients that cannot reach an IPv4 target, left alone", Pass;
}

impl Reason {
    /// The number of reasons: the size of the counter array.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether a packet with this reason does not reach a server.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        self == Self::Hidden || self.verdict() == Verdict::Drop
    }

    /// Whether the counter array keeps a count of this reason.
    #[inline(always)]
    #[must_use]
    pub const fn is_counted(self) -> bool {
        !matches!(self, Self::NoRule | Self::Redirected)
    }

    /// Whether the counter array keeps a count of packets with this reason.
    #[inline(always)]
    #[must_use]
    pub const fn is_counted_for_packets(self) -> bool {
        !matches!(self, Self::NoRule | Self::Redirected | Self::Restored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_texts_are_unique_and_indexed() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(
                !Reason::ALL[..i]
                    .iter()
                    .any(|other| other.label() == reason.label() || other.text() == reason.text()),
                "{reason:?}"
            );
        }
    }
}
