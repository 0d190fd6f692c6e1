//! Attaching to an interface by XDP.

use aya::programs::{TcAttachType, Xdp, XdpMode};
use portredir_common::wire::frame::Link as FrameLink;

use crate::host::snapshot::Interface;
use crate::loader::error::{DatapathError, attach_reason, chain};
use crate::loader::link::{Hook, Link, pin};
use crate::loader::{Datapath, program};
use crate::state::attachment::Mode;

impl Datapath {
    pub(super) fn attach_xdp(
        &mut self,
        interface: &Interface,
        mode: XdpMode,
    ) -> Result<(Hook, Mode), DatapathError> {
        let (with_frags, without) = match mode {
            XdpMode::Driver => ("native+frags", "native"),
            _ => ("generic+frags", "generic"),
        };
        let mut ways = vec![(program::xdp(interface.link), without)];
        if interface.link == FrameLink::Ethernet {
            ways.insert(0, (program::XDP_FRAGS, with_frags));
        }
        let mut result = None;
        for (name, what) in ways {
            if let Some(Err(error)) = &result {
                // The kernel (before 5.18) or the driver has no frags.
                log::debug!("{}: {}", interface.name, chain(error));
            }
            let program: &mut Xdp = self.program(name)?;
            let link = program
                .attach_to_if_index(interface.index, mode)
                .and_then(|id| program.take_link(id))
                .map_err(|error| DatapathError::Attach {
                    what,
                    interface: interface.name.clone(),
                    reason: attach_reason(&error, program, interface.index, mode),
                });
            match link {
                Ok(link) => {
                    let mut mode = Mode::named(what);
                    let pin = pin::device(interface.index, TcAttachType::Ingress);
                    let hook = self.hold(Link::Xdp(link), &pin, name, &mut mode)?;
                    return Ok((hook, mode));
                }
                Err(error) => result = Some(Err(error)),
            }
        }
        result.expect("there is a way")
    }
}
