//! Attaching to the network namespace: connections look for their listening socket.

use aya::maps::HashMap as BpfHashMap;
use aya::programs::SkLookup;
use portredir_common::map::sockets::scope;

use super::cgroup::open;
use crate::loader::error::{DatapathError, chain, hook_error, map_error};
use crate::loader::link::{Attached, Link, Lookup, pin};
use crate::loader::{Datapath, program};
use crate::state::attachment::Mode;
use crate::sys::netns::NETNS;

/// The map of the interfaces whose connections listeners get.
const SCOPE: &str = "SCOPE";

impl Datapath {
    /// Lets the listeners have the connections of an interface too.
    pub(super) fn attach_lookup(
        &mut self,
        ifindex: u32,
    ) -> Result<(Attached, Mode), DatapathError> {
        self.enter_scope(ifindex)?;
        let mode = self.lookup.as_ref().map(|lookup| lookup.mode.clone());
        Ok((Attached::Lookup, mode.unwrap_or_default()))
    }

    /// Gives the connections of an interface to the listeners.
    pub(in crate::loader) fn enter_scope(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        if self.lookup.is_none() {
            self.lookup = Some(self.load_lookup()?);
        }
        self.set_scope(ifindex, scope::LOOKUP)
    }

    /// Says who gives connections of an interface to listeners, of [`scope`].
    pub(super) fn set_scope(&mut self, ifindex: u32, by: u8) -> Result<(), DatapathError> {
        BpfHashMap::<_, u32, u8>::try_from(self.map_mut(SCOPE))
            .and_then(|mut map| map.insert(ifindex, by, 0))
            .map_err(map_error(SCOPE))
    }

    /// Takes the connections of an interface from the listeners.
    pub(in crate::loader) fn leave_scope(&mut self, ifindex: u32) {
        // The entry does not exist when the interface was not recorded.
        let _ = BpfHashMap::<_, u32, u8>::try_from(self.map_mut(SCOPE))
            .and_then(|mut map| map.remove(&ifindex));
    }

    /// The interfaces of which listeners get connections.
    pub(in crate::loader) fn in_scope(&self) -> Vec<u32> {
        let map = BpfHashMap::<_, u32, u8>::try_from(self.map(SCOPE));
        let keys = map.map(|map| map.keys().filter_map(Result::ok).collect());
        keys.unwrap_or_default()
    }

    pub(super) fn load_lookup(&mut self) -> Result<Lookup, DatapathError> {
        let mut mode = Mode::named("sk_lookup");
        // Servers register before the first connection looks for them.
        let register = match self.options.cgroup.clone() {
            None => None,
            Some(cgroup) => {
                let name = program::REGISTER;
                Some(self.attach_sock_ops(name, &cgroup, pin::REGISTER, &mut mode)?)
            }
        };
        let name = self.lookup_program()?;
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

    /// The name of the lookup that this kernel takes, which is then loaded.
    pub(in crate::loader) fn lookup_program(&mut self) -> Result<&'static str, DatapathError> {
        match self.program::<SkLookup>(program::LOOKUP) {
            Ok(_) => Ok(program::LOOKUP),
            Err(DatapathError::Program { source, .. }) => {
                if !self.options.is_everywhere {
                    return Err(DatapathError::NoIfindex(source));
                }
                log::debug!("{}", chain(&source));
                Ok(program::LOOKUP_EVERYWHERE)
            }
            Err(error) => Err(error),
        }
    }
}
