//! Constants that user space sets before it loads programs.

use portredir_common::map::bucket::Shares;
use portredir_common::map::hash::Seed;

/// The division of `FLOWS` among the flow tables.
#[unsafe(no_mangle)]
pub static FLOW_SHARES: Shares = Shares::new(0, 0);

/// The division of `FORWARDS` among the flow tables.
#[unsafe(no_mangle)]
pub static FORWARD_SHARES: Shares = Shares::new(0, 0);

/// The seed of the hashes in `FLOWS`.
#[unsafe(no_mangle)]
pub static FLOW_SEED: Seed = Seed([0; Seed::WORDS]);

/// The network namespace that the rules are for: cgroups contain processes of
/// others.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;

/// Whether servers on loopback addresses serve other hosts.
#[unsafe(no_mangle)]
static LOOPBACK_TARGET: u8 = 0;

/// Whether the kernel has `bpf_skc_to_mptcp_sock`.
#[unsafe(no_mangle)]
static HAS_MPTCP: u8 = 0;

#[inline(always)]
pub fn has_mptcp() -> bool {
    // SAFETY: a valid static; volatile, as the loader changes its value.
    unsafe { (&raw const HAS_MPTCP).read_volatile() != 0 }
}

/// Whether the kernel has `bpf_skc_to_tcp6_sock` and `bpf_skc_to_udp6_sock`.
#[unsafe(no_mangle)]
static HAS_SOCKET_CASTS: u8 = 0;

#[inline(always)]
pub fn has_socket_casts() -> bool {
    // SAFETY: a valid static; volatile, as the loader changes its value.
    unsafe { (&raw const HAS_SOCKET_CASTS).read_volatile() != 0 }
}

#[inline(always)]
pub fn is_loopback_target_allowed() -> bool {
    // SAFETY: a valid static; volatile, as the loader changes its value.
    unsafe { (&raw const LOOPBACK_TARGET).read_volatile() != 0 }
}

/// Whether the kernel has IPsec, and so the helper that asks for it.
#[unsafe(no_mangle)]
static HAS_IPSEC: u8 = 0;

#[inline(always)]
pub fn has_ipsec() -> bool {
    // SAFETY: as above.
    unsafe { (&raw const HAS_IPSEC).read_volatile() != 0 }
}

#[inline(always)]
pub fn netns_cookie() -> u64 {
    // SAFETY: as above.
    unsafe { (&raw const NETNS_COOKIE).read_volatile() }
}
