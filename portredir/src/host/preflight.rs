//! What must be there before anything is touched: privileges and features.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use thiserror::Error;

use crate::exit::ExitCode;
use crate::ipc::client::Owner;

/// What redirecting needs, as long as it follows interfaces.
const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
];

/// Why the program cannot run here.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// Not privileged enough.
    #[error(
        "not permitted: {} missing; run it with sudo, or give the binary its capabilities: \
         setcap cap_bpf,cap_perfmon,cap_net_admin+ep portredir",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Capabilities(Vec<Capability>),
    /// The kernel is too old or was built without something.
    #[error(
        "this kernel has no {feature}, which came with Linux {since}; portredir needs Linux 5.15"
    )]
    Feature {
        /// What is missing.
        feature: &'static str,
        /// The first kernel that has it.
        since: &'static str,
    },
    /// Another instance works in this network namespace.
    #[error("another portredir runs in this network namespace{0}; stop it first: portredir down")]
    Running(Holder),
    /// Another command is at work for too long.
    #[error(
        "another portredir command is at work in this network namespace{0}; try again when it is done"
    )]
    Busy(Holder),
    /// The lock could not be taken.
    #[error("take the lock of this network namespace")]
    Lock(#[source] io::Error),
}

impl PreflightError {
    /// How the program ends by this error.
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
/// [`PreflightError::Capabilities`], naming those that are missing.
pub fn check_capabilities() -> Result<(), PreflightError> {
    let has = |cap| caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false);
    let missing: Vec<_> = NEEDED
        .into_iter()
        .filter(|&cap| {
            // CAP_SYS_ADMIN includes the two that were split from it in 5.8.
            !has(cap) && (cap == Capability::CAP_NET_ADMIN || !has(Capability::CAP_SYS_ADMIN))
        })
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(PreflightError::Capabilities(missing))
    }
}

/// Checks that the kernel has what every engine needs, by trying it.
///
/// # Errors
///
/// [`PreflightError::Feature`], naming the first that is missing.
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
        // An error of the probe itself says nothing; loading will tell.
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
    Ok(())
}

/// Who holds the lock, as far as that is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holder(Option<Owner>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |owner| write!(f, " ({owner})"))
    }
}

/// Held while an instance works in a network namespace.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its existence")] UnixListener);

impl Lock {
    const NAME: &str = "portredir";

    /// Waits for the lock of the current network namespace, for as long as a
    /// command may take.
    ///
    /// # Errors
    ///
    /// [`PreflightError::Busy`] when another instance still holds it.
    pub async fn wait() -> Result<Self, PreflightError> {
        const LONGEST: Duration = Duration::from_secs(10);
        const POLL: Duration = Duration::from_millis(10);
        let end = Instant::now() + LONGEST;
        loop {
            match Self::bind() {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(PreflightError::Lock(error));
                }
                Err(_) if Instant::now() >= end => {
                    return Err(PreflightError::Busy(Self::holder()));
                }
                Err(_) => tokio::time::sleep(POLL).await,
                Ok(lock) => return Ok(lock),
            }
        }
    }

    /// Takes the lock of the current network namespace.
    ///
    /// # Errors
    ///
    /// [`PreflightError::Running`] when another instance holds it.
    pub fn take() -> Result<Self, PreflightError> {
        Self::bind().map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => PreflightError::Running(Self::holder()),
            _ => PreflightError::Lock(error),
        })
    }

    /// An abstract socket address belongs to a network namespace and is freed
    /// by the kernel however the process ends, so nothing can be left behind.
    fn bind() -> io::Result<Self> {
        let addr = SocketAddr::from_abstract_name(Self::NAME)?;
        UnixListener::bind_addr(&addr).map(Self)
    }

    fn holder() -> Holder {
        let ask = || {
            // Nobody accepts it: it must not wait when others have asked before.
            let socket = socket::socket(
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )?;
            let addr = UnixAddr::new_abstract(Self::NAME.as_bytes())?;
            socket::connect(socket.as_raw_fd(), &addr)?;
            Owner::of(&socket)
        };
        Holder(ask().ok())
    }
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
