//! Attaching to a cgroup: the hooks of local clients, and those of sockets.

use std::fs::File;
use std::path::Path;

use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSockAddr, SockOps};
use portredir_common::map::sockets::scope;

use crate::host::snapshot::Interface;
use crate::loader::error::{DatapathError, chain, hook_error, link_error};
use crate::loader::link::{Attached, Hook, Link, Watch, pin};
use crate::loader::{Datapath, program};
use crate::state::attachment::Mode;

/// A link takes no flag; it always runs beside the programs of others.
const LINK_MODE: CgroupAttachMode = CgroupAttachMode::Single;

impl Datapath {
    pub(super) fn attach_clients(
        &mut self,
        interface: &Interface,
    ) -> Result<(Attached, Mode), DatapathError> {
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
        // The hook on `lo` serves all processes, so there is none beside those of a part.
        if !self.options.is_cgroup_named
            && let Some((hook, assign)) = self.attach_beside_clients(interface)
        {
            hooks.push(hook);
            mode.programs.extend(assign.programs);
        }
        // What asks goes before what answers.
        hooks.reverse();
        Ok((Attached::Clients(hooks), mode))
    }

    /// Lets listeners on targets have the local connections that the hooks of clients do
    /// not redirect: those of raw sockets, and of sockets that are bound to a port.
    fn attach_beside_clients(&mut self, interface: &Interface) -> Option<(Hook, Mode)> {
        let refused = |error| log::debug!("raw sockets are not redirected: {}", chain(&error));
        let (hook, mode) = self.attach_assign(interface).unwrap_or_else(|error| {
            refused(error);
            None
        })?;
        if let Err(error) = self.set_scope(interface.index, scope::ASSIGN) {
            refused(error);
            hook.detach(&interface.name);
            return None;
        }
        Some((hook, mode))
    }

    /// Without it connections are known by their packets alone.
    pub(super) fn attach_watch(&mut self) -> Option<Watch> {
        let Some(cgroup) = self.options.cgroup.clone() else {
            log::debug!("no cgroup v2 hierarchy is mounted: accepted connections are not recorded");
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
                    "accepted connections cannot be recorded; a flood may cut off connections \
                     whose server has not sent anything yet: {}",
                    chain(&error)
                );
                None
            }
        }
    }

    /// Attaches a program for what sockets of a cgroup do.
    pub(super) fn attach_sock_ops(
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
}

/// Opens a file that stands for something to attach to.
pub(super) fn open(path: &str) -> Result<File, DatapathError> {
    File::open(path).map_err(|source| DatapathError::Open {
        path: path.to_owned(),
        source,
    })
}
