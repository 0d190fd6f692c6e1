//! Target ports that others take, while rules ask for listeners: a NodePort comes and goes at
//! any time, and nobody tells.

use std::time::{Duration, Instant};

use super::Controller;
use super::error::ControllerError;
use super::event::OnEvent;
use crate::state::State;
use crate::sys::lock::Lock;

impl Controller {
    /// Whether rules ask for listeners, so that ports that others take matter.
    #[must_use]
    pub const fn asks_for_listeners(&self) -> bool {
        self.state.settings.if_listening && !self.state.settings.rules.is_empty()
    }

    /// Looks at who takes target ports, and compiles the rules anew where that has changed.
    /// Nothing is done while another command works. Returns the time that the look took.
    ///
    /// # Errors
    ///
    /// The host cannot be read, or the kernel refuses.
    pub async fn follow_taken(
        &mut self,
        on_event: OnEvent<'_>,
    ) -> Result<Duration, ControllerError> {
        let began = Instant::now();
        let snapshot = self.netlink.snapshot().await?;
        let rules = self.state.settings.rules.clone();
        let taken = snapshot.read_taken(&rules, &self.state.taken);
        let took = began.elapsed();
        if taken == self.state.taken {
            return Ok(took);
        }
        let lock = self.pins.as_ref().map(|_| Lock::take());
        if matches!(lock, Some(Err(_))) {
            return Ok(took);
        }
        self.reread()?;
        // Other rules have other targets, and the command that made them has looked.
        if self.asks_for_listeners() && self.state.settings.rules == rules {
            log::info!("ports that others take have changed: {taken:?}");
            let state = State {
                taken,
                ..self.state.clone()
            };
            self.commit(&snapshot, state, on_event)?;
        }
        Ok(took)
    }
}
