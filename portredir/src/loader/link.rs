//! The attached programs, and the handles that keep them attached.

use std::io;
use std::path::PathBuf;

use aya::programs::TcAttachType;
use aya::programs::links::FdLink;
use aya::programs::tc::{self, SchedClassifierLink};
use aya::programs::xdp::XdpLink;

use crate::state::attachment::{Mode, Place};
use crate::sys::bpf_link;

/// An attached program.
#[derive(Debug)]
pub(super) struct Hook {
    /// The name of the program.
    pub(super) program: String,
    pub(super) hold: Hold,
}

/// The handle that keeps a program attached.
#[derive(Debug)]
pub(super) enum Hold {
    /// The program stays for as long as the link is held.
    Link(#[expect(dead_code, reason = "held to be dropped")] Link),
    /// The program stays until the pin is removed.
    Pin(PathBuf),
    /// The program stays until the clsact filter is removed.
    Filter(Filter),
}

/// The place of a clsact filter.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) direction: TcAttachType,
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// The guard that removes the filter when the process ends; without it, the filter
    /// outlives the process, and is found by its program.
    pub(super) link: Option<Link>,
}

impl Hook {
    pub(super) fn detach(self, interface: &str) {
        match self.hold {
            Hold::Link(_) | Hold::Filter(Filter { link: Some(_), .. }) => {}
            Hold::Pin(path) => {
                // Somebody else may have removed the pin.
                if let Err(error) = bpf_link::detach(&path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    log::warn!("cannot remove {}: {error}", path.display());
                }
            }
            Hold::Filter(Filter { direction, .. }) => {
                // A missing filter is fine: the qdisc may be gone.
                let _ = tc::qdisc_detach_program(interface, direction, &self.program);
            }
        }
    }
}

/// A link of the library.
#[derive(Debug)]
pub(super) enum Link {
    Fd(FdLink),
    Xdp(XdpLink),
    Tc(SchedClassifierLink),
}

/// The names of pins.
pub(super) mod pin {
    use aya::programs::TcAttachType;

    pub const LOOKUP: &str = "lookup";
    pub const REGISTER: &str = "register";
    pub const ACCEPT: &str = "accept";

    pub fn device(index: u32, direction: TcAttachType) -> String {
        let direction = match direction {
            TcAttachType::Ingress => "ingress",
            _ => "egress",
        };
        format!("if{index}-{direction}")
    }
}

/// The programs that redirect on one interface.
#[derive(Debug)]
pub(super) enum Attached {
    /// Programs that rewrite packets.
    Wire {
        /// The ingress program; `None` where incoming packets are seen on another
        /// interface.
        ingress: Option<Hook>,
        egress: Hook,
    },
    /// A share of the socket lookup, which gives connections to listeners:
    /// [`Datapath::lookup`].
    Lookup,
    /// The cgroup hooks for local clients, and the one on `lo` beside them. Hooks that
    /// redirect are detached first.
    Clients(Vec<Hook>),
}

/// The socket lookup, of the whole network namespace.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) link: Hook,
    pub(super) register: Option<Hook>,
    pub(super) mode: Mode,
}

impl Lookup {
    pub(super) fn detach(self) {
        self.link.detach("");
        if let Some(register) = self.register {
            register.detach("");
        }
    }
}

/// The program that records connections when they are accepted, for all interfaces where
/// packets are rewritten.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) hook: Hook,
    /// The program in the form of a [`Mode`].
    pub(super) programs: Vec<(Place, String)>,
}
