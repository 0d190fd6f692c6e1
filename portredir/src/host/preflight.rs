//! The checks before anything is touched: privileges and features.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use caps::{CapSet, Capability};
use thiserror::Error;

use crate::exit::ExitCode;
use crate::sys::capability::NEEDED;
use crate::sys::netns::netns_cookie;

/// The reason why the program cannot run here.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// A capability is missing.
    #[error(
        "not permitted: missing {}; use sudo or, for foreground runs, set file capabilities: setcap \
         cap_bpf,cap_perfmon,cap_net_admin+ep portredir",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Capabilities(Vec<Capability>),
    /// The kernel is too old or was built without a feature.
    #[error(
        "this kernel lacks {feature}, added in Linux {since}; portredir needs Linux 6.1 or newer"
    )]
    Feature {
        /// The missing feature.
        feature: &'static str,
        /// The first kernel that has it.
        since: &'static str,
    },
}

impl PreflightError {
    /// The exit code for this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Capabilities(_) => ExitCode::NotPermitted,
            _ => ExitCode::Failed,
        }
    }
}

/// Checks that this process may load and attach programs.
///
/// # Errors
///
/// [`PreflightError::Capabilities`], with the missing ones.
pub fn check_capabilities() -> Result<(), PreflightError> {
    let has = |cap| caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false);
    let missing: Vec<_> = NEEDED
        .into_iter()
        .filter(|&cap| {
            // CAP_SYS_ADMIN includes the two capabilities that were split from it in 5.8.
            !has(cap) && (cap == Capability::CAP_NET_ADMIN || !has(Capability::CAP_SYS_ADMIN))
        })
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(PreflightError::Capabilities(missing))
    }
}

/// Whether the kernel has BPF `sk_lookup`, for engine `socket`; `None` without the
/// permission to ask.
#[must_use]
pub fn has_sk_lookup() -> Option<bool> {
    is_program_supported(ProgramType::SkLookup).ok()
}

/// Checks that the kernel has the features that every engine needs, by trying them.
///
/// # Errors
///
/// [`PreflightError::Feature`], with the first that is missing.
pub fn check_kernel() -> Result<(), PreflightError> {
    let maps = [
        (
            MapType::LruHash,
            "LRU hash map (BPF_MAP_TYPE_LRU_HASH)",
            "4.10",
        ),
        (
            MapType::SkStorage,
            "socket storage map (BPF_MAP_TYPE_SK_STORAGE)",
            "5.2",
        ),
    ];
    for (map, feature, since) in maps {
        // An error of the probe itself means nothing; loading will show.
        if matches!(is_map_supported(map), Ok(false)) {
            return Err(PreflightError::Feature { feature, since });
        }
    }
    let helpers = [
        (
            BpfHelper::BPF_FUNC_skc_lookup_tcp,
            "BPF helper bpf_skc_lookup_tcp",
            "5.2",
        ),
        (
            BpfHelper::BPF_FUNC_sk_storage_get,
            "BPF helper bpf_sk_storage_get",
            "5.2",
        ),
        (
            BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
            "BPF helper bpf_ktime_get_coarse_ns",
            "5.11",
        ),
    ];
    for (helper, feature, since) in helpers {
        if matches!(
            is_helper_supported(ProgramType::SchedClassifier, helper),
            Ok(false)
        ) {
            return Err(PreflightError::Feature { feature, since });
        }
    }
    let cookie = netns_cookie();
    if cookie.is_err_and(|error| error.raw_os_error() == Some(libc::ENOPROTOOPT)) {
        return Err(PreflightError::Feature {
            feature: "socket option SO_NETNS_COOKIE",
            since: "5.14",
        });
    }
    Ok(())
}
