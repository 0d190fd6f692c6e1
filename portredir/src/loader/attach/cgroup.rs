//! Attaching to a cgroup: the hooks of local clients, and those of sockets.

use std::fs::File;
use std::path::Path;

use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSockAddr, SockOps};
use portredir_common::map::sockets::Scope;

use crate::loader::error::{DatapathError, chain, hook_error, link_error};
use crate::loader::link::{Attached, Hook, Link, Watch, pin};
use crate::loader::{Datapath, program};
use crate::state::attachment::{Mode, Place};

/// A link takes no flag; it always runs beside the programs of others.
const LINK_MODE: CgroupAttachMode = CgroupAttachMode::Single;

impl Datapath {
    pub(super) fn attach_clients(
        &mut self,
        ifindex: u32,
    ) -> Result<(Attached, Mode), DatapathError> {
        let path = self.options.cgroup.clone().ok_or(DatapathError::NoCgroup)?;
        let to = path.display().to_string();
        let mut mode = Mode::named("cgroup");
        mode.programs = self.attach_beside_clients(ifindex);
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
                    self.leave_scope(ifindex);
                    return Err(error);
                }
            }
        }
        // What asks goes before what answers.
        hooks.reverse();
        Ok((Attached::Clients(hooks), mode))
    }

    /// Lets the listeners have the local connections that the hooks of clients do not
    /// redirect: those of raw sockets, and of sockets that are bound to a port.
    ///
    /// A socket lookup serves all processes, so there is none beside a part of them.
    fn attach_beside_clients(&mut self, ifindex: u32) -> Vec<(Place, String)> {
        if self.options.is_cgroup_named {
            return Vec::new();
        }
        match self.enter_scope(ifindex, Scope::BesideClients) {
            Ok(mode) => mode.programs,
            Err(error) => {
                log::debug!("no socket lookup for local clients: {}", chain(&error));
                Vec::new()
            }
        }
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
