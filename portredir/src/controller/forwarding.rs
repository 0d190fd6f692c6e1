//! Forwarding that is switched on for targets with an address. Everything that was off is
//! written down first, for the process that puts it back.

use super::Controller;
use super::error::ControllerError;
use crate::host::forwarding::{Forwarding, Saved};
use crate::loader::{chain, pinned};

impl Controller {
    /// Switches on what is off, and returns what that was.
    ///
    /// # Errors
    ///
    /// The kernel refuses; then nothing is switched on.
    pub(super) fn enable_forwarding(
        &mut self,
        forwarding: &Forwarding,
    ) -> Result<Saved, ControllerError> {
        let off = forwarding.save()?;
        if off.is_empty() {
            return Ok(off);
        }
        let mut all = self.saved_forwarding();
        all.add(&off);
        self.save_forwarding(all)?;
        if let Err(error) = off.enable() {
            self.forget_forwarding(&off);
            return Err(error.into());
        }
        for saved in &off.switches {
            log::info!("{}: switched on", saved.switch.name());
        }
        Ok(off)
    }

    /// Switches off again what a change that failed has switched on.
    pub(super) fn disable_forwarding(&mut self, on: &Saved) {
        if !on.is_empty() {
            restore(on);
            self.forget_forwarding(on);
        }
    }

    /// Switches off all that was off before this redirect.
    pub(super) fn restore_forwarding(&mut self) {
        let all = self.saved_forwarding();
        self.disable_forwarding(&all);
    }

    /// The switches that were off before this redirect.
    pub(super) fn saved_forwarding(&self) -> Saved {
        match &self.pins {
            Some(pins) => pinned::forwarding(pins),
            None => self.forwarding.clone(),
        }
    }

    fn save_forwarding(&mut self, all: Saved) -> Result<(), ControllerError> {
        if self.pins.is_some() {
            self.datapath.set_forwarding(&all)?;
        }
        self.forwarding = all;
        Ok(())
    }

    fn forget_forwarding(&mut self, gone: &Saved) {
        let mut all = self.saved_forwarding();
        all.remove(gone);
        if let Err(error) = self.save_forwarding(all) {
            log::warn!("{}", chain(&error));
        }
    }
}

/// Puts switches back. What cannot be put back is told, and stops nothing.
pub(super) fn restore(saved: &Saved) {
    if let Err(error) = saved.restore() {
        log::warn!("cannot switch forwarding off: {}", chain(&error));
    }
}
