//! The user of this process, and the user who logged in before sudo or su.

use std::fs;

use nix::unistd::{Uid, User};

/// The ID of the user of this process.
#[must_use]
pub fn uid() -> u32 {
    Uid::current().as_raw()
}

/// The ID of the user who logged in: what pam_loginuid(8) has set, if it has.
#[must_use]
pub fn login_uid() -> Option<u32> {
    let text = fs::read_to_string("/proc/self/loginuid").ok()?;
    let uid = text.trim().parse().ok()?;
    // The kernel's word for "none".
    (uid != u32::MAX).then_some(uid)
}

/// The name of a user.
#[must_use]
pub fn name(uid: u32) -> Option<String> {
    let user = User::from_uid(Uid::from_raw(uid)).ok()??;
    Some(user.name)
}
