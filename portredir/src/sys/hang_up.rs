//! SIGHUP around an execve(2). A new program has the default action until it listens, and
//! that action ends the process.

use nix::sys::signal::{SigSet, Signal};

/// Holds SIGHUP back in this thread. A program that is executed inherits that, and gets the
/// signal once it calls [`deliver`].
///
/// # Errors
///
/// The kernel refuses.
pub fn hold_back() -> nix::Result<()> {
    alone().thread_block()
}

/// Lets SIGHUP reach this thread.
///
/// # Errors
///
/// The kernel refuses.
pub fn deliver() -> nix::Result<()> {
    alone().thread_unblock()
}

fn alone() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGHUP);
    set
}
