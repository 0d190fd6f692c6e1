//! The early end of the benchmark.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

/// The user or the system asked the benchmark to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("interrupted; everything that was made is removed")]
pub struct Interrupted;

/// A request to end, shared by all threads.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Checks for the request, wherever the work can end.
    ///
    /// # Errors
    ///
    /// [`Interrupted`]: the work is to end.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    /// Requests the end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
