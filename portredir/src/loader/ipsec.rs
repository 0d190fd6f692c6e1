//! Connections out of IPsec: listeners get them, beside programs that rewrite all other
//! packets of an interface.
//!
//! No attachment records this. One bit beside the generation of rules says that it is on,
//! `SCOPE` has the interfaces, and the socket lookup has a pin of its own.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

use portredir_common::map::packet_path::IPSEC_BY_SOCKET;

use super::Datapath;
use super::error::DatapathError;
use super::link::{Attached, Hold, Hook, Lookup, pin};
use crate::loader::program;
use crate::state::attachment::{Mode, Place};

impl Datapath {
    /// Gives the connections out of IPsec to the listeners on these interfaces, and on no
    /// others.
    ///
    /// # Errors
    ///
    /// The kernel refuses the socket lookup, or [`DatapathError::Map`].
    pub fn set_ipsec(&mut self, interfaces: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let gone: Vec<_> = self.ipsec.difference(interfaces).copied().collect();
        for index in gone {
            self.ipsec.remove(&index);
            if !matches!(self.attached.get(&index), Some(Attached::Lookup)) {
                self.leave_scope(index);
            }
        }
        let new: Vec<_> = interfaces.difference(&self.ipsec).copied().collect();
        for index in new {
            self.enter_scope(index)?;
            self.ipsec.insert(index);
        }
        // Set last, as the packets are left alone from then on.
        let word = &self.hot[0].generation;
        if self.ipsec.is_empty() {
            word.fetch_and(!IPSEC_BY_SOCKET, Relaxed);
            self.end_lookup();
        } else {
            word.fetch_or(IPSEC_BY_SOCKET, Relaxed);
        }
        Ok(())
    }

    /// Adopts what [`Self::set_ipsec`] of another process has left active, once its
    /// attachments are adopted.
    pub fn adopt_ipsec(&mut self) {
        let Some(pins) = self.pins.clone() else {
            return;
        };
        if self.hot[0].generation.load(Relaxed) & IPSEC_BY_SOCKET == 0 {
            return;
        }
        let is_engine = |index: &u32| {
            let attached = self.attached.get(index);
            matches!(attached, Some(Attached::Lookup | Attached::Clients(_)))
        };
        let indexes = self.in_scope().into_iter();
        self.ipsec = indexes.filter(|index| !is_engine(index)).collect();
        let link = pins.path(pin::LOOKUP);
        if self.lookup.is_none() && link.exists() {
            let register = Some(pins.path(pin::REGISTER)).filter(|path| path.exists());
            let pinned = |program: &str, pin| Hook {
                program: program.to_owned(),
                hold: Hold::Pin(pin),
            };
            self.lookup = Some(Lookup {
                link: pinned(program::LOOKUP, link),
                register: register.map(|pin| pinned(program::REGISTER, pin)),
                mode: Mode::named("sk_lookup"),
            });
        }
    }

    /// Replaces the socket lookup that another process has left for connections out of
    /// IPsec with that of this process.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Replace`], [`DatapathError::Program`].
    pub fn replace_ipsec(&mut self) -> Result<(), DatapathError> {
        let Some(lookup) = self.lookup.as_ref().filter(|_| !self.ipsec.is_empty()) else {
            return Ok(());
        };
        let mut mode = Mode::named(&lookup.mode.name);
        let mut add = |pin: &str, program: &str| {
            let place = Place::Pin(pin.to_owned());
            mode.programs.push((place, program.to_owned()));
        };
        if lookup.register.is_some() {
            add(pin::REGISTER, program::REGISTER);
        }
        add(pin::LOOKUP, self.lookup_program()?);
        self.replace("", &mode)
    }
}
