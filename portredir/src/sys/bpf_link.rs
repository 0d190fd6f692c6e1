//! Pinned links of bpf(2): replacing their program, and detaching.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The descriptor of a pinned link.
struct PinnedLink(OwnedFd);

/// Commands of `bpf(2)` and their attributes: `union bpf_attr` of
/// include/uapi/linux/bpf.h. No library does this for all kinds of links.
mod sys {
    pub const OBJ_GET: libc::c_long = 7;
    pub const LINK_UPDATE: libc::c_long = 29;
    pub const LINK_DETACH: libc::c_long = 34;

    #[repr(C)]
    pub struct ObjGet {
        pub pathname: u64,
        pub bpf_fd: u32,
        pub file_flags: u32,
    }

    #[repr(C)]
    pub struct LinkUpdate {
        pub link_fd: u32,
        pub new_prog_fd: u32,
        pub flags: u32,
        pub old_prog_fd: u32,
    }

    #[repr(C)]
    pub struct LinkDetach {
        pub link_fd: u32,
    }
}

#[expect(unsafe_code, reason = "a system call")]
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: callers pass the attributes of the command; they outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const *attributes,
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

impl PinnedLink {
    #[expect(unsafe_code, reason = "a descriptor of the kernel")]
    fn open(pin: &Path) -> io::Result<Self> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let fd = bpf(
            sys::OBJ_GET,
            &sys::ObjGet {
                pathname: path.as_ptr() as u64,
                bpf_fd: 0,
                file_flags: 0,
            },
        )?;
        // SAFETY: the descriptor is new, and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn fd(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }
}

/// Replaces the program of a pinned link, between two packets.
///
/// # Errors
///
/// `ENOLINK` when the interface or cgroup of the link is gone, and other errors of the
/// kernel.
pub fn replace(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = PinnedLink::open(pin)?;
    let update = sys::LinkUpdate {
        link_fd: link.fd(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(sys::LINK_UPDATE, &update).map(drop)
}

/// Detaches a pinned link, and removes the pin.
///
/// Without the detach, removing the pin would detach the link some time later: the kernel
/// frees files of bpffs after a grace period.
///
/// # Errors
///
/// The pin cannot be removed.
pub fn detach(pin: &Path) -> io::Result<()> {
    // The interface or cgroup of the link may be gone.
    if let Ok(link) = PinnedLink::open(pin)
        && let Err(error) = bpf(sys::LINK_DETACH, &sys::LinkDetach { link_fd: link.fd() })
    {
        log::debug!("detach {}: {error}", pin.display());
    }
    fs::remove_file(pin)
}
