//! Sockets that begin to listen, and connections that servers accept.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use portredir_common::flow::FlowKey;
use portredir_common::kernel::Host as _;
use portredir_common::net::{Port, Protocol};

use crate::context::Context;
use crate::globals::netns_cookie;
use crate::kernel::Kernel;
use crate::kernel::sockets::{has_udp, tcp_state_of};

impl Context for *mut bpf_sock_ops {
    const IS_PACKET: bool = false;

    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.cast()
    }

    /// Not told.
    #[inline(always)]
    fn ifindex(self) -> u32 {
        0
    }

    #[inline(always)]
    fn tcp_state(self, key: &FlowKey) -> u32 {
        tcp_state_of(self, key)
    }

    #[inline(always)]
    fn has_udp(self, key: &FlowKey) -> bool {
        has_udp(self, key)
    }

    #[inline(always)]
    fn is_ipsec_by_socket(self) -> bool {
        false
    }
}

#[inline(always)]
pub fn is_target(tables: &Kernel<*mut bpf_sock_ops>, port: Port) -> bool {
    tables.port(Protocol::Tcp, port).is_target()
}

/// Whether a socket is of the network namespace that the rules are for.
#[inline(always)]
pub fn is_in_netns(ops: *mut bpf_sock_ops) -> bool {
    // SAFETY: the kernel passes a valid context for the time of the run.
    unsafe { bpf_get_netns_cookie(ops.cast()) == netns_cookie() }
}
