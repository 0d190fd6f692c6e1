//! Attaching to interfaces, cgroups and the network namespace.

use std::fs::{self, File};
use std::path::Path;

use aya::maps::HashMap as BpfHashMap;
use aya::programs::links::{CgroupAttachMode, FdLink, LinkOrder};
use aya::programs::tc::{self, NlOptions, TcAttachOptions, TcError, TcHandle};
use aya::programs::{
    CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps, TcAttachType, Xdp, XdpMode,
};
use aya::sys::SyscallError;
use portredir_common::wire::Link as FrameLink;

use super::error::{DatapathError, attach_reason, chain, hook_error, link_error, map_error};
use super::link::{Attached, Hook, Link, Lookup, Watch, pin};
use super::{Datapath, program};
use crate::config::engine::Engine;
use crate::host::snapshot::Interface;
use crate::plan::Planned;
use crate::state::attachment::{Mode, Place};

/// A link takes no flag; it always runs beside the programs of others.
const LINK_MODE: CgroupAttachMode = CgroupAttachMode::Single;

impl Datapath {
    /// Attaches to an interface.
    ///
    /// # Errors
    ///
    /// Any [`DatapathError`]; nothing is left attached then.
    pub fn attach(&mut self, planned: &Planned) -> Result<Mode, DatapathError> {
        let (attached, mode) = match planned.engine {
            Engine::Lookup => self.attach_lookup(planned.interface.index)?,
            Engine::Cgroup => self.attach_clients()?,
            _ => self.attach_wire(planned)?,
        };
        self.attached.insert(planned.interface.index, attached);
        Ok(mode)
    }

    fn attach_wire(&mut self, planned: &Planned) -> Result<(Attached, Mode), DatapathError> {
        // What is refused once is not tried again for the next interface.
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

    /// Without it connections are known by their packets alone.
    fn attach_watch(&mut self) -> Option<Watch> {
        let Some(cgroup) = self.options.cgroup.clone() else {
            log::debug!("no cgroup v2 hierarchy is mounted: connections are not watched");
            return None;
        };
        let mut mode = Mode::default();
        match self.attach_sock_ops(program::ACCEPT, &cgroup, pin::ACCEPT, &mut mode) {
            Ok(hook) => Some(Watch {
                hook,
                programs: mode.programs,
            }),
            Err(error) => {
                log::warn!(
                    "connections are known by their packets alone, a flood may cut those \
                     whose server is silent: {}",
                    chain(&error)
                );
                None
            }
        }
    }

    /// Attaches a program for what sockets of a cgroup do.
    fn attach_sock_ops(
        &mut self,
        name: &'static str,
        cgroup: &Path,
        pin: &str,
        mode: &mut Mode,
    ) -> Result<Hook, DatapathError> {
        let to = cgroup.display().to_string();
        let cgroup = open(&to)?;
        let program: &mut SockOps = self.program(name)?;
        let link = program
            .attach(cgroup, LINK_MODE)
            .and_then(|id| program.take_link(id))
            .and_then(|link| FdLink::try_from(link).map_err(link_error))
            .map_err(hook_error(name, to))?;
        self.hold(Link::Fd(link), pin, name, mode)
    }

    fn attach_device(&mut self, planned: &Planned) -> Result<(Attached, Mode), DatapathError> {
        let interface = &planned.interface;
        let is_tcx_allowed = planned.engine != Engine::TcClsact;
        // Egress first: a packet must not be rewritten before its reply would be.
        let (egress, mut mode) = self.attach_tc(interface, TcAttachType::Egress, is_tcx_allowed)?;
        let ingress = match planned.engine {
            _ if planned.is_egress_only => None,
            Engine::XdpNative => Some(self.attach_xdp(interface, XdpMode::Driver)),
            Engine::XdpGeneric => Some(self.attach_xdp(interface, XdpMode::Skb)),
            _ => Some(self.attach_tc(interface, TcAttachType::Ingress, is_tcx_allowed)),
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

    /// Keeps a link, by a pin where it is to outlive the process.
    fn hold(
        &self,
        link: Link,
        pin: &str,
        program: &str,
        mode: &mut Mode,
    ) -> Result<Hook, DatapathError> {
        let Some(pins) = &self.pins else {
            return Ok(Hook::Held(link));
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
        // What was left by somebody who was killed before he could say so.
        let _ = fs::remove_file(&path);
        link.pin(&path).map_err(|e| error(chain(&e)))?;
        let place = Place::Pin(pin.to_owned());
        mode.programs.push((place, program.to_owned()));
        Ok(Hook::Pinned(path))
    }

    /// Lets the listeners have the connections of an interface too.
    fn attach_lookup(&mut self, ifindex: u32) -> Result<(Attached, Mode), DatapathError> {
        if self.lookup.is_none() {
            self.lookup = Some(self.load_lookup()?);
        }
        let mode = self.lookup.as_ref().map(|lookup| lookup.mode.clone());
        let name = "SCOPE";
        BpfHashMap::<_, u32, u8>::try_from(self.map_mut(name))
            .and_then(|mut scope| scope.insert(ifindex, 1, 0))
            .map_err(map_error(name))?;
        Ok((Attached::Lookup, mode.unwrap_or_default()))
    }

    fn load_lookup(&mut self) -> Result<Lookup, DatapathError> {
        let mut mode = Mode::named("sk_lookup");
        // Servers register before the first connection looks for them.
        let register = match self.options.cgroup.clone() {
            None => None,
            Some(cgroup) => {
                let name = program::REGISTER;
                Some(self.attach_sock_ops(name, &cgroup, pin::REGISTER, &mut mode)?)
            }
        };
        let name = match self.program::<SkLookup>(program::LOOKUP) {
            Ok(_) => program::LOOKUP,
            Err(DatapathError::Program { source, .. }) => {
                if !self.options.is_everywhere {
                    return Err(DatapathError::NoIfindex(source));
                }
                log::debug!("{}", chain(&source));
                program::LOOKUP_EVERYWHERE
            }
            Err(error) => return Err(error),
        };
        const NETNS: &str = "/proc/self/ns/net";
        let netns = open(NETNS)?;
        let program: &mut SkLookup = self.program(name)?;
        let link = program
            .attach(netns)
            .and_then(|id| program.take_link(id))
            .map_err(hook_error(name, NETNS.to_owned()))?;
        let link = self.hold(Link::Fd(link.into()), pin::LOOKUP, name, &mut mode)?;
        Ok(Lookup {
            link,
            register,
            mode,
        })
    }

    fn attach_clients(&mut self) -> Result<(Attached, Mode), DatapathError> {
        let path = self.options.cgroup.clone().ok_or(DatapathError::NoCgroup)?;
        let to = path.display().to_string();
        let mut mode = Mode::named("cgroup");
        let mut hooks = Vec::new();
        for name in program::CLIENT {
            let cgroup = open(&to)?;
            let program: &mut CgroupSockAddr = self.program(name)?;
            let hook = program
                .attach(cgroup, LINK_MODE)
                .and_then(|id| program.take_link(id))
                .and_then(|link| FdLink::try_from(link).map_err(link_error))
                .map_err(hook_error(name, to.clone()))
                .and_then(|link| self.hold(Link::Fd(link), name, name, &mut mode));
            match hook {
                Ok(hook) => hooks.push(hook),
                Err(error) => {
                    hooks.into_iter().rev().for_each(|hook| hook.detach(""));
                    return Err(error);
                }
            }
        }
        // What asks goes before what answers.
        hooks.reverse();
        Ok((Attached::Clients(hooks), mode))
    }

    fn attach_xdp(
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
                    let pin = pin::device(interface.index, true);
                    let hook = self.hold(Link::Xdp(link), &pin, name, &mut mode)?;
                    return Ok((hook, mode));
                }
                Err(error) => result = Some(Err(error)),
            }
        }
        result.expect("there is a way")
    }

    fn attach_tc(
        &mut self,
        interface: &Interface,
        direction: TcAttachType,
        is_tcx_allowed: bool,
    ) -> Result<(Hook, Mode), DatapathError> {
        let Interface {
            name, index, link, ..
        } = interface;
        let is_ingress = direction == TcAttachType::Ingress;
        let program_name = if is_ingress {
            program::ingress(*link)
        } else {
            program::egress(*link)
        };
        let is_pinned = self.pins.is_some();
        let program: &mut SchedClassifier = self.program(program_name)?;
        let error = |what, reason| DatapathError::Attach {
            what,
            interface: name.clone(),
            reason,
        };
        if is_tcx_allowed {
            // First in both directions: a program before us that ends the chain
            // would leave packets half redirected.
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            match program.attach_with_options(name, direction, options) {
                Ok(id) => {
                    let link = program.take_link(id).map_err(|e| error("tcx", chain(&e)))?;
                    let mut mode = Mode::named("tcx");
                    let pin = pin::device(*index, is_ingress);
                    let hook = self.hold(Link::Tc(link), &pin, program_name, &mut mode)?;
                    return Ok((hook, mode));
                }
                // Before 6.6 the attach type does not exist.
                Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                    if io_error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(e) => return Err(error("tcx", chain(&e))),
            }
        }
        match tc::qdisc_add_clsact(name) {
            Ok(()) => {}
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::ENOENT) => {
                let hint = "; are the kernel modules sch_ingress and cls_bpf there?";
                return Err(error("clsact", chain(&e) + hint));
            }
            Err(e) => return Err(error("clsact", chain(&e))),
        }
        let mut attach = |priority| {
            let options = NlOptions {
                priority,
                handle: TcHandle::AUTO_ASSIGN,
                classid: None,
            };
            program.attach_with_options(name, direction, TcAttachOptions::Netlink(options))
        };
        // The first priority there is; of programs with the same, the last to
        // come is the first to run.
        let id = attach(1).or_else(|refused| {
            log::warn!(
                "{name}: a tc filter of another kind has priority 1 and comes before ours; if it \
                 ends the chain nothing is redirected here ({})",
                chain(&refused)
            );
            attach(0)
        });
        let link = id
            .and_then(|id| program.take_link(id))
            .map_err(|e| error("clsact", chain(&e)))?;
        let mut mode = Mode::named("clsact");
        if !is_pinned {
            return Ok((Hook::Held(Link::Tc(link)), mode));
        }
        let place = (|| {
            Ok::<_, ProgramError>(Place::Filter {
                is_ingress,
                priority: link.priority()?,
                handle: link.handle()?.into(),
            })
        })();
        let place = place.map_err(|e| error("clsact", chain(&e)))?;
        mode.programs.push((place, program_name.to_owned()));
        std::mem::forget(link);
        Ok((Hook::Filter(direction, program_name.to_owned()), mode))
    }
}

fn open(path: &str) -> Result<File, DatapathError> {
    File::open(path).map_err(|source| DatapathError::Open {
        path: path.to_owned(),
        source,
    })
}
