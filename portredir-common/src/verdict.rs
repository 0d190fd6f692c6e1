//! What happens to a packet, and why.
//!
//! One list: [`Reason`] is the error inside the datapath, the index of the
//! counter, the name in the output and the word in the log.

/// What the hook does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on: to the next program and to the stack.
    Pass,
    /// It ends here.
    Drop,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $verdict:ident;)+) => {
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

            /// The reason of a number, as a BPF function returns it.
            #[inline(always)]
            #[must_use]
            pub const fn from_number(number: u32) -> Self {
                $(if number == Self::$name as u32 {
                    return Self::$name;
                })+
                Self::NoRule
            }

            /// What this reason means for the packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict),+ }
            }
        }
    };
}

reasons! {
    /// Nothing to do: no rule for this port, or not TCP, UDP or an ICMP error.
    /// All other traffic of the host ends here, so it is not counted.
    NoRule = "no_rule", Pass;
    /// Destination port rewritten to the target. Counted per rule instead.
    Redirected = "redirected", Pass;
    /// Reply: source port rewritten back to the one that was dialled.
    Restored = "restored", Pass;
    /// Traffic of the target port that was never redirected.
    Direct = "direct", Pass;
    /// Direct traffic whose client port was changed to avoid a collision.
    DirectRemapped = "direct_remapped", Pass;
    /// ICMP error about one of our flows, quoted ports rewritten.
    IcmpTranslated = "icmp_translated", Pass;
    /// ICMP error that quotes no flow of ours.
    IcmpForeign = "icmp_foreign", Pass;
    /// A rule has the port, but the destination is not this host.
    NotLocal = "not_local", Pass;
    /// Lengths that contradict each other; the stack decides.
    Malformed = "malformed", Pass;
    /// An IPv6 extension header that hides or protects the ports.
    ExtensionHeader = "extension_header", Pass;
    /// Belongs to a connection that a real server on the dialled port holds.
    ForeignFlow = "foreign_flow", Pass;
    /// A new flow to a port whose rule is gone: it goes to the port itself.
    Draining = "draining", Pass;
    /// A new flow while nobody listens on the target: it goes to the port itself.
    NotListening = "not_listening", Pass;
    /// Another host dialled a target that is hidden.
    Hidden = "hidden", Drop;
    /// First fragment without the TCP checksum (RFC 1858): cannot be rewritten.
    FragmentTooShort = "fragment_too_short", Drop;
    /// Another flow holds the client's port and no free one was found.
    NoFreePort = "no_free_port", Drop;
    /// The flow table refused the entry; the reply would leave unrestored.
    TableFull = "table_full", Drop;
    /// Nobody listens on the target, or not on this address (engine `socket`).
    NoListener = "no_listener", Drop;
    /// A rewrite failed half-way.
    WriteFailed = "write_failed", Drop;
}

impl Reason {
    /// How many there are: the size of the counter array.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether the counter array keeps a count of it.
    #[inline(always)]
    #[must_use]
    pub const fn is_counted(self) -> bool {
        !matches!(self, Self::NoRule | Self::Redirected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_indexed() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(
                !Reason::ALL[..i]
                    .iter()
                    .any(|other| other.label() == reason.label()),
                "{reason:?}"
            );
        }
    }
}
