//! The programs: the datapath at XDP, at TC ingress and at TC egress, for
//! devices with and without an Ethernet header, and at the hooks of sockets.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "contexts, maps and helpers are raw pointers")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "packets are shorter than 4 GiB"
)]

mod context;
mod frame;
mod globals;
mod kernel;
mod maps;
mod program;
mod verifier;

/// The verifier proves that nothing panics; the compiler wants a handler.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// `bpf_l4_csum_replace`, `bpf_sk_storage_get` and others may be called only
// from programs that declare a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
