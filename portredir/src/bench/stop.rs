//! How the benchmark ends early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

/// The error of a benchmark that the user has interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("interrupted; everything that was made is removed")]
pub struct Interrupted;

/// The signal to the work to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Checks whether the work is to end; called wherever it can.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] when the work is to end.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    /// Tells the work to end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
