//! Attaching to the network namespace: connections look for their listening socket.

use aya::maps::HashMap as BpfHashMap;
use aya::programs::SkLookup;

use super::cgroup::open;
use crate::loader::error::{DatapathError, chain, hook_error, map_error};
use crate::loader::link::{Attached, Link, Lookup, pin};
use crate::loader::{Datapath, program};
use crate::state::attachment::Mode;

impl Datapath {
    /// Lets the listeners have the connections of an interface too.
    pub(super) fn attach_lookup(
        &mut self,
        ifindex: u32,
    ) -> Result<(Attached, Mode), DatapathError> {
        if self.lookup.is_none() {
            self.lookup = Some(self.load_lookup()?);
        }
        let mode = self.lookup.as_ref().map(|lookup| lookup.mode.clone());
        self.enter_scope(ifindex)?;
        Ok((Attached::Lookup, mode.unwrap_or_default()))
    }

    /// Lets listeners have the connections of an interface.
    pub(super) fn enter_scope(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let name = "SCOPE";
        BpfHashMap::<_, u32, u8>::try_from(self.map_mut(name))
            .and_then(|mut scope| scope.insert(ifindex, 1, 0))
            .map_err(map_error(name))
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
}
