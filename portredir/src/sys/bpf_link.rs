//! Links that are pinned in bpffs: reads, replaces and detaches their programs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A pinned link.
struct PinnedLink(OwnedFd);

/// The commands of `bpf(2)` and their attributes: `union bpf_attr` of
/// include/uapi/linux/bpf.h. No library wraps them for all kinds of links.
mod sys {
    pub const OBJ_GET: libc::c_long = 7;
    pub const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub const LINK_UPDATE: libc::c_long = 29;
    pub const LINK_DETACH: libc::c_long = 34;

    #[repr(C)]
    pub struct ObjGet {
        pub pathname: u64,
        pub bpf_fd: u32,
        pub file_flags: u32,
    }

    #[repr(C)]
    pub struct Info {
        pub bpf_fd: u32,
        pub info_len: u32,
        pub info: u64,
    }

    /// The beginning of `struct bpf_link_info`.
    #[repr(C)]
    #[derive(Default)]
    pub struct LinkInfo {
        pub link_type: u32,
        pub id: u32,
        pub prog_id: u32,
    }

    pub const LINK_INFO_LEN: u32 = 12;
    const _: () = assert!(size_of::<LinkInfo>() == LINK_INFO_LEN as usize);

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
pub(super) fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: callers pass the attributes of the command; they outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
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
            &mut sys::ObjGet {
                pathname: path.as_ptr() as u64,
                bpf_fd: 0,
                file_flags: 0,
            },
        )?;
        // SAFETY: a new descriptor, which no other code knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn fd(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }
}

/// The ID of the program of a pinned link; `None` when there is no such pin. A link that
/// was detached keeps its program.
///
/// # Errors
///
/// When the pin may not be read, or is no link.
pub fn program_id(pin: &Path) -> io::Result<Option<u32>> {
    let link = match PinnedLink::open(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut info = sys::LinkInfo::default();
    let mut attributes = sys::Info {
        bpf_fd: link.fd(),
        info_len: sys::LINK_INFO_LEN,
        info: &raw mut info as u64,
    };
    bpf(sys::OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(Some(info.prog_id))
}

/// Replaces the program of a pinned link, between two packets.
///
/// # Errors
///
/// `ENOLINK` when the attach point is gone, and other errors of the kernel.
pub fn replace(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = PinnedLink::open(pin)?;
    let mut update = sys::LinkUpdate {
        link_fd: link.fd(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(sys::LINK_UPDATE, &mut update).map(drop)
}

/// Detaches a pinned link, and removes the pin.
///
/// Without its pin, the kernel would detach the link as well, but some time later: it
/// frees files of bpffs when no process can see them any more.
///
/// # Errors
///
/// When the pin cannot be removed.
pub fn detach(pin: &Path) -> io::Result<()> {
    // The attach point may be gone.
    if let Ok(link) = PinnedLink::open(pin)
        && let Err(error) = bpf(
            sys::LINK_DETACH,
            &mut sys::LinkDetach { link_fd: link.fd() },
        )
    {
        log::debug!("detach {}: {error}", pin.display());
    }
    fs::remove_file(pin)
}
