//! The needs of the container: what the manifests give it, and a pod without which says so.

use caps::Capability;
use thiserror::Error;

use crate::config::settings::Settings;
use crate::exit::ExitCode;
use crate::host::preflight::{PreflightError, check_capabilities};
use crate::sys::bpffs::{self, Mount};
use crate::sys::capability;
use crate::sys::cgroup::cgroup_root;

/// A need without which no agent runs.
#[derive(Debug, Error)]
pub enum NeedError {
    /// Capabilities are missing.
    #[error(
        "the container lacks {}; add to its securityContext: capabilities: {{add: [NET_ADMIN, BPF, \
         PERFMON]}}",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Capabilities(Vec<Capability>),
    /// bpffs is missing.
    #[error(
        "bpffs is not mounted at /sys/fs/bpf in the container; on the node, run: mount -t bpf bpf \
         /sys/fs/bpf (systemd does so when it boots), and give the pod the hostPath /sys/fs/bpf"
    )]
    Bpffs,
}

impl NeedError {
    /// The exit code for this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Capabilities(_) => ExitCode::NotPermitted,
            Self::Bpffs => ExitCode::Failed,
        }
    }
}

/// Checks what no agent runs without.
///
/// # Errors
///
/// [`NeedError`], with the first need that is missing.
pub fn check() -> Result<(), NeedError> {
    match check_capabilities() {
        Err(PreflightError::Capabilities(missing)) => return Err(NeedError::Capabilities(missing)),
        // The kernel is checked when the redirect starts.
        Ok(()) | Err(PreflightError::Feature { .. }) => {}
    }
    // Who may mount bpffs does so when the redirect starts.
    if bpffs::mount() != Mount::Mounted && !capability::has_sys_admin() {
        return Err(NeedError::Bpffs);
    }
    Ok(())
}

/// The words for what clients on the node itself lose; `None` where nothing is missing.
#[must_use]
pub fn of_local_clients(settings: &Settings) -> Option<&'static str> {
    let is_there = settings.cgroup.path().is_some() || cgroup_root().is_some();
    (!is_there).then_some(
        "the root of the cgroup v2 hierarchy is not mounted in the container, so their packets are \
         rewritten on lo; give the pod the hostPath /sys/fs/cgroup at /host/cgroup",
    )
}
