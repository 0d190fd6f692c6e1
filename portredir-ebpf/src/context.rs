//! The contexts of programs, and how their fields are loaded.

use core::ffi::c_void;

use portredir_common::flow::FlowKey;

/// The address family of IPv4 (include/linux/socket.h).
pub const AF_INET: u32 = 2;

/// A context, as far as [`Kernel`](crate::kernel::Kernel) needs it.
pub trait Context: Copy {
    /// Whether the context is that of a packet that comes in.
    const IS_PACKET: bool;

    /// The context, as helpers take it.
    fn as_ptr(self) -> *mut c_void;

    /// The ifindex of the ingress interface; 0 where it is not known.
    fn ifindex(self) -> u32;

    /// The state of the TCP socket that gets the packets of a flow, or 0.
    fn tcp_state(self, key: &FlowKey) -> u32;

    /// Whether there is a UDP socket that gets the packets of a flow.
    fn has_udp(self, key: &FlowKey) -> bool;

    /// Whether the packet came out of IPsec on an interface where listeners get such
    /// connections.
    fn is_ipsec_by_socket(self) -> bool;
}

/// Loads the `i`th word of a field of a context.
///
/// The load is in assembler, as the compiler would choose between two fields by
/// computing a pointer, which is forbidden for contexts. This is a macro because
/// assembler needs the offset as a literal.
macro_rules! word {
    ($ctx:expr, $context:ty, $field:ident, $i:literal) => {{
        let word: u64;
        // SAFETY: the kernel passes a valid context for the time of the run.
        unsafe {
            core::arch::asm!(
                "{word} = *(u32 *)({ctx} + {offset})",
                word = out(reg) word,
                ctx = in(reg) $ctx,
                offset = const core::mem::offset_of!($context, $field) + 4 * $i,
                options(pure, readonly, nostack),
            );
        }
        word as u32
    }};
}

/// Loads an IPv4 address from a field of a context.
macro_rules! v4 {
    ($ctx:expr, $context:ty, $field:ident) => {
        Addr::v4_word([$crate::context::word!($ctx, $context, $field, 0)])
    };
}

/// Loads an IPv6 address from a field of a context.
macro_rules! v6 {
    ($ctx:expr, $context:ty, $field:ident) => {{
        Addr::from_words([
            $crate::context::word!($ctx, $context, $field, 0),
            $crate::context::word!($ctx, $context, $field, 1),
            $crate::context::word!($ctx, $context, $field, 2),
            $crate::context::word!($ctx, $context, $field, 3),
        ])
    }};
}

pub(crate) use {v4, v6, word};
