//! How the benchmark ends early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

/// Somebody wants it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("interrupted; everything that was made is removed")]
pub struct Interrupted;

/// Tells the work that it is to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// To be asked wherever the work can end.
    ///
    /// # Errors
    ///
    /// [`Interrupted`], when it is to.
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
