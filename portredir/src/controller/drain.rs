//! Waiting for redirected connections to end.

use std::time::Duration;

use tokio::time::Instant;

use super::Controller;
use super::error::ControllerError;
use super::event::{Event, OnEvent};
use crate::sys::sock_diag::{self, Kind};

impl Controller {
    /// Waits for the end of the connections whose packets are rewritten, for
    /// `timeout` at most.
    ///
    /// # Errors
    ///
    /// Connections cannot be listed.
    pub(super) async fn drain(
        &self,
        timeout: Duration,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        const POLL: Duration = Duration::from_millis(100);
        let end = Instant::now() + timeout;
        let mut is_told = false;
        loop {
            let sockets = sock_diag::list(Kind::Connected)?;
            let connections = self.datapath.count_redirected(&self.table, &sockets)?
                + self.datapath.count_forwarded()?;
            let left = end.saturating_duration_since(Instant::now());
            if is_told {
                on_event(Event::Waiting { connections, left });
            }
            if connections == 0 {
                return Ok(());
            }
            if left.is_zero() {
                on_event(Event::CutOff { connections });
                return Ok(());
            }
            if !is_told {
                on_event(Event::Draining {
                    connections,
                    timeout,
                });
                is_told = true;
            }
            tokio::time::sleep(POLL.min(left)).await;
        }
    }
}
