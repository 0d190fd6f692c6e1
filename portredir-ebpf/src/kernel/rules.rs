//! The maps that rules with conditions are compiled into, and the call of
//! [`match_rule`] over them.

use aya_ebpf::btf_maps::lpm_trie::Key;
use portredir_common::datapath::rule_match::{Probe, match_rule};
use portredir_common::flow::FlowKey;
use portredir_common::kernel::RuleMaps;
use portredir_common::map::rules::{AddrKey, Candidates, Choice, IfaceKey, PortEntry, SourceKey};
use portredir_common::net::Port;
use portredir_common::packed::Packed;

use crate::maps::{ADDRS, IFACES, SOURCES};

/// [`RuleMaps`] of the kernel, which need no context.
struct Maps;

impl RuleMaps for Maps {
    #[inline(always)]
    fn addr_group(&self, key: &AddrKey) -> Option<u32> {
        // SAFETY: four bytes.
        unsafe { ADDRS.get(key) }.copied()
    }

    #[inline(always)]
    fn candidates(&self, key: &SourceKey) -> Option<&Candidates> {
        SOURCES.get(&Key::new(SourceKey::PREFIX + 128, *key))
    }

    #[inline(always)]
    fn iface_mask(&self, key: &IfaceKey) -> Option<u64> {
        // SAFETY: eight bytes.
        unsafe { IFACES.get(key) }.copied()
    }
}

/// [`match_rule`] as a function that is global to the verifier, which walks it once: see
/// [`subprog`](super::subprog).
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn candidate(entry: u64, key: *const FlowKey, dst_port: u32, ifindex: u32) -> u64 {
    // SAFETY: null or a key.
    let choice = unsafe { key.as_ref() }.and_then(|key| {
        let dst_port = Port::unpack(dst_port.into());
        let probe = Probe {
            key,
            dst_port,
            ifindex,
        };
        match_rule(&Maps, PortEntry::unpack(entry), &probe)
    });
    choice.pack()
}

/// Calls [`candidate`].
#[inline(always)]
pub fn call_match_rule(
    entry: PortEntry,
    key: &FlowKey,
    dst_port: Port,
    ifindex: u32,
) -> Option<Choice> {
    Packed::unpack(candidate(
        entry.pack(),
        key,
        dst_port.half().into(),
        ifindex,
    ))
}
