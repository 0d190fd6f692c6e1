//! What is attached, and what keeps it so.

use std::path::PathBuf;

use aya::programs::TcAttachType;
use aya::programs::links::FdLink;
use aya::programs::tc::{self, SchedClassifierLink};
use aya::programs::xdp::XdpLink;

use crate::state::attachment::{Mode, Place};
use crate::sys::bpf_link;

/// Keeps a program attached.
#[derive(Debug)]
pub(super) enum Hook {
    /// For as long as it is held.
    Held(#[expect(dead_code, reason = "held to be dropped")] Link),
    /// Until the pin is removed.
    Pinned(PathBuf),
    /// Until the clsact filter is removed, which is known by its program.
    Filter(TcAttachType, String),
}

impl Hook {
    pub(super) fn detach(self, interface: &str) {
        match self {
            Self::Held(_) => {}
            Self::Pinned(path) => {
                if let Err(error) = bpf_link::detach(&path) {
                    log::warn!("remove {}: {error}", path.display());
                }
            }
            Self::Filter(direction, program) => {
                // Not being there is fine: the qdisc may be gone.
                let _ = tc::qdisc_detach_program(interface, direction, &program);
            }
        }
    }
}

/// A link as the library has it.
#[derive(Debug)]
pub(super) enum Link {
    Fd(FdLink),
    Xdp(XdpLink),
    Tc(SchedClassifierLink),
}

/// The names of pins.
pub(super) mod pin {
    pub const LOOKUP: &str = "lookup";
    pub const REGISTER: &str = "register";
    pub const ACCEPT: &str = "accept";

    pub fn device(index: u32, is_ingress: bool) -> String {
        let direction = if is_ingress { "ingress" } else { "egress" };
        format!("if{index}-{direction}")
    }
}

/// What redirects on one interface.
#[derive(Debug)]
pub(super) enum Attached {
    /// Packets are rewritten.
    Wire {
        /// `None` where packets that come in are met elsewhere.
        ingress: Option<Hook>,
        egress: Hook,
    },
    /// Connections are given to listeners: [`Datapath::lookup`].
    Lookup,
    /// Clients on this host are pointed elsewhere. What asks goes first.
    Clients(Vec<Hook>),
}

/// The engine for listeners, of the whole network namespace.
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

/// What notes connections when they are accepted, for all interfaces where
/// packets are rewritten.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) hook: Hook,
    /// It, as a [`Mode`] has it.
    pub(super) programs: Vec<(Place, String)>,
}
