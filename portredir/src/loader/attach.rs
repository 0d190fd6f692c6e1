//! Attaching to interfaces, cgroups and the network namespace: one hook a file.

mod cgroup;
mod sk_lookup;
mod tc;
mod xdp;

use std::fs;

use aya::programs::links::FdLink;
use aya::programs::{TcAttachType, XdpMode};

use super::Datapath;
use super::error::{DatapathError, chain};
use super::link::{Attached, Hold, Hook, Link};
use crate::config::engine::Engine;
use crate::plan::Planned;
use crate::state::attachment::{Mode, Place};

impl Datapath {
    /// Attaches to an interface.
    ///
    /// # Errors
    ///
    /// Any [`DatapathError`]; then no program stays attached.
    pub fn attach(&mut self, planned: &Planned) -> Result<Mode, DatapathError> {
        let (attached, mode) = match planned.engine {
            Engine::Lookup => self.attach_lookup(planned.interface.index)?,
            Engine::Cgroup => self.attach_clients(&planned.interface)?,
            _ => self.attach_wire(planned)?,
        };
        self.attached.insert(planned.interface.index, attached);
        Ok(mode)
    }

    fn attach_wire(&mut self, planned: &Planned) -> Result<(Attached, Mode), DatapathError> {
        // A refused watch is not tried again for the next interface.
        if self.watch.is_none() && !self.is_rewriting() {
            self.watch = self.attach_watch();
        }
        let wire = self.attach_device(planned);
        if wire.is_err() {
            self.end_watch();
        }
        let (attached, mut mode) = wire?;
        if let Some(watch) = &self.watch {
            mode.programs.splice(0..0, watch.programs.iter().cloned());
        }
        Ok((attached, mode))
    }

    fn attach_device(&mut self, planned: &Planned) -> Result<(Attached, Mode), DatapathError> {
        let interface = &planned.interface;
        let way = match planned.engine {
            Engine::TcClsact => tc::Way::Clsact,
            _ => tc::Way::TcxOrClsact,
        };
        // Egress first: a packet must not be rewritten before its reply would be.
        let (egress, mut mode) = self.attach_tc(interface, TcAttachType::Egress, way)?;
        let ingress = match planned.engine {
            _ if planned.is_egress_only => None,
            Engine::XdpNative => Some(self.attach_xdp(interface, XdpMode::Driver)),
            Engine::XdpGeneric => Some(self.attach_xdp(interface, XdpMode::Skb)),
            _ => Some(self.attach_tc(interface, TcAttachType::Ingress, way)),
        };
        let ingress = match ingress {
            None => None,
            Some(Ok((ingress, Mode { name, programs }))) => {
                mode.name = name;
                mode.programs.extend(programs);
                Some(ingress)
            }
            Some(Err(error)) => {
                egress.detach(&interface.name);
                return Err(error);
            }
        };
        Ok((Attached::Wire { ingress, egress }, mode))
    }

    /// Attaches the programs again that all interfaces share: those for accepted
    /// connections and for listening sockets.
    ///
    /// # Errors
    ///
    /// Any [`DatapathError`].
    pub fn renew_shared(&mut self) -> Result<(), DatapathError> {
        if let Some(watch) = self.watch.take() {
            watch.hook.detach("");
            self.watch = self.attach_watch();
        }
        let is_lookup = |attached: &Attached| matches!(attached, Attached::Lookup);
        if self.attached.values().any(is_lookup) || !self.ipsec.is_empty() {
            if let Some(lookup) = self.lookup.take() {
                lookup.detach();
            }
            self.lookup = Some(self.load_lookup()?);
        }
        Ok(())
    }

    /// Keeps a link, by a pin if it outlives the process.
    fn hold(
        &self,
        link: Link,
        pin: &str,
        program: &str,
        mode: &mut Mode,
    ) -> Result<Hook, DatapathError> {
        let hook = |hold| Hook {
            program: program.to_owned(),
            hold,
        };
        let Some(pins) = &self.pins else {
            return Ok(hook(Hold::Link(link)));
        };
        let path = pins.path(pin);
        let error = |reason: String| DatapathError::Pin {
            path: path.display().to_string(),
            reason,
        };
        let link = match link {
            Link::Fd(link) => Ok(link),
            Link::Xdp(link) => link.try_into(),
            Link::Tc(link) => link.try_into(),
        };
        let link: FdLink = link.map_err(|e| error(e.to_string()))?;
        // A process that was killed before it could record the pin may have left it.
        let _ = fs::remove_file(&path);
        link.pin(&path).map_err(|e| error(chain(&e)))?;
        let place = Place::Pin(pin.to_owned());
        mode.programs.push((place, program.to_owned()));
        Ok(hook(Hold::Pin(path)))
    }
}
