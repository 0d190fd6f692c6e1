//! Sockets that begin to listen, and connections that servers accept.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use portredir_common::kernel::Host as _;
use portredir_common::net::{Port, Protocol};

use crate::context::Context;
use crate::globals::netns_cookie;
use crate::kernel::Kernel;

impl Context for *mut bpf_sock_ops {
    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.cast()
    }

    /// Not told.
    #[inline(always)]
    fn ifindex(self) -> u32 {
        0
    }
}

#[inline(always)]
pub fn is_target(tables: &Kernel<*mut bpf_sock_ops>, port: Port) -> bool {
    tables.port(Protocol::Tcp, port).is_target()
}

/// Whether a socket is of the network namespace that the rules are for.
#[inline(always)]
pub fn is_here(ops: *mut bpf_sock_ops) -> bool {
    // SAFETY: the kernel passes a valid context for the time of the run.
    unsafe { bpf_get_netns_cookie(ops.cast()) == netns_cookie() }
}
