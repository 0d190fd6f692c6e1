//! The capabilities of this process.

use caps::{CapSet, Capability, CapsHashSet};

/// What redirecting needs, as long as it follows interfaces.
pub const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
];

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
        // Also where a service manager has done it, and forbids the call.
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
