//! Serves metrics at the address that the settings name.

use std::net::SocketAddr;

use super::Controller;
use super::error::{ControllerError, unserved};
use super::event::{Event, OnEvent};
use crate::ipc::scrape::{self, Scrapes};

impl Controller {
    /// Serves metrics from now on, at the address of the settings and of later ones.
    pub fn serve_metrics(&mut self, scrapes: Scrapes, on_event: OnEvent<'_>) {
        self.scrapes = Some(scrapes);
        self.follow_metrics(on_event);
    }

    /// Serves at the address of the settings. A failure is told once, and tried again later.
    pub(super) fn follow_metrics(&mut self, on_event: OnEvent<'_>) {
        let addr = self.state.settings.metrics.get();
        let Some(scrapes) = &mut self.scrapes else {
            return;
        };
        let failed = scrapes.serve_at(addr).err();
        let failed = failed.zip(addr).map(|(error, addr)| unserved(addr, &error));
        if let Some(text) = failed.as_ref().filter(|_| self.told_metrics != failed) {
            on_event(Event::MetricsFailed(text.clone()));
        }
        self.told_metrics = failed;
    }
}

/// Checks that metrics can be served at an address, before anything is attached.
///
/// # Errors
///
/// [`ControllerError::Metrics`].
pub fn check(addr: SocketAddr) -> Result<(), ControllerError> {
    scrape::check(addr).map_err(|source| ControllerError::Metrics { addr, source })
}
