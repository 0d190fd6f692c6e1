//! The capabilities of this process.

use caps::{CapSet, Capability, CapsHashSet};

/// The capabilities that the watcher and the foreground run need.
pub const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
];

/// Whether this process may mount file systems.
#[must_use]
pub fn has_sys_admin() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Gives up, for good, every capability that redirecting does not need.
///
/// # Errors
///
/// When the kernel refuses.
pub fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = NEEDED
        .into_iter()
        .filter(|cap| held.contains(cap))
        .collect();
    let inherited = caps::read(None, CapSet::Inheritable)?;
    if kept == held && inherited.is_empty() {
        // A service manager may have dropped them already, and forbid the call.
        return Ok(());
    }
    caps::clear(None, CapSet::Ambient)?;
    if held.contains(&Capability::CAP_SETPCAP) {
        for cap in held.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *cap)?;
        }
    }
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
