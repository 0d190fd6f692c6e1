//! The directory in bpffs whose pins keep maps and links after the process ends.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

use crate::sys::bpf_link::detach;

/// The mount point of bpffs, for systemd and for portredir.
const BPFFS: &str = "/sys/fs/bpf";

/// The source of a mount that portredir made.
const SOURCE: &str = "portredir";

/// The directory cannot be used.
#[derive(Debug, Error)]
pub enum PinError {
    /// bpffs is not mounted, and mounting it failed.
    #[error("bpffs is not mounted and mounting it failed; mount it with: mount -t bpf bpf {BPFFS}")]
    Mount(#[source] io::Error),
    /// A mount would vanish with the process.
    #[error(
        "bpffs is not mounted here, and this process has a mount namespace of its own, in which a \
         mount would not last (`ip netns exec` makes one; `nsenter --net=/run/netns/NAME` does not)"
    )]
    OwnNamespace,
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// The operation.
        action: &'static str,
        /// The path of the file.
        path: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// The pins of one network namespace.
#[derive(Clone, Debug)]
pub struct PinDir(PathBuf);

impl PinDir {
    /// The directory of the network namespace with this cookie. It need not exist.
    #[must_use]
    pub fn new(netns_cookie: u64) -> Self {
        Self(
            Path::new(BPFFS)
                .join("portredir")
                .join(netns_cookie.to_string()),
        )
    }

    /// The path of the directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The path of a pin.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Whether the directory exists, and so pins may exist.
    ///
    /// # Errors
    ///
    /// [`PinError::Io`]: this user may not search the directory.
    pub fn exists(&self) -> Result<bool, PinError> {
        self.0.try_exists().map_err(io_error("look up", &self.0))
    }

    /// Creates the directory, and mounts bpffs if it is not mounted.
    ///
    /// # Errors
    ///
    /// [`PinError`].
    pub fn create(&self) -> Result<(), PinError> {
        if !is_bpffs() {
            if has_own_mounts() {
                return Err(PinError::OwnNamespace);
            }
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some(SOURCE), BPFFS, Some("bpf"), flags, Some("mode=700"))
                .map_err(|errno| PinError::Mount(errno.into()))?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(io_error("create", &self.0))
    }

    /// Detaches all links and removes their pins; the maps stay.
    ///
    /// # Errors
    ///
    /// [`PinError::Io`], with the path that remains.
    pub fn remove_links(&self) -> Result<(), PinError> {
        let mut names = self.names()?;
        names.retain(|name| {
            name.to_string_lossy()
                .contains(|c: char| c.is_ascii_lowercase())
        });
        // Programs for replies are removed after programs that redirect.
        names.sort_by_key(|name| {
            let name = name.to_string_lossy();
            let later = ["egress", "recv", "peer", "register"];
            later.iter().any(|word| name.contains(word))
        });
        self.remove_each(names, detach)
    }

    fn names(&self) -> Result<Vec<OsString>, PinError> {
        match fs::read_dir(&self.0) {
            Ok(entries) => Ok(entries
                .filter_map(Result::ok)
                .map(|entry| entry.file_name())
                .collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(io_error("read", &self.0)(error)),
        }
    }

    fn remove_each(
        &self,
        names: Vec<OsString>,
        remove: impl Fn(&Path) -> io::Result<()>,
    ) -> Result<(), PinError> {
        for name in names {
            let path = self.0.join(name);
            remove(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// Removes all pins, then the mount if portredir made it and no other program uses
    /// it.
    ///
    /// # Errors
    ///
    /// [`PinError::Io`], with the path that remains.
    pub fn remove(&self) -> Result<(), PinError> {
        self.remove_links()?;
        self.remove_each(self.names()?, |path| fs::remove_file(path))?;
        remove_dir(&self.0)?;
        if let Some(parent) = self.0.parent()
            // Other network namespaces may have a directory there.
            && remove_dir(parent).is_ok()
            && is_our_mount()
        {
            // The mount is busy when another program uses it.
            let _ = umount2(BPFFS, MntFlags::UMOUNT_NOFOLLOW);
        }
        Ok(())
    }
}

fn remove_dir(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.display().to_string();
    move |source| PinError::Io {
        action,
        path,
        source,
    }
}

/// Whether this process has another mount namespace than process 1. A mount is never in
/// two namespaces, so the first mounts are compared; few users may read the link
/// /proc/1/ns/mnt.
fn has_own_mounts() -> bool {
    let first_mount = |process: &str| {
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).ok()?;
        mounts.lines().next().map(str::to_owned)
    };
    matches!(
        (first_mount("self"), first_mount("1")),
        (Some(own), Some(first)) if own != first
    )
}

fn is_bpffs() -> bool {
    statfs(BPFFS).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether portredir made the mount, and it is empty.
fn is_our_mount() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mine = format!("{SOURCE} {BPFFS} bpf ");
    // The kernel itself makes these files (kernel/bpf/preload).
    let is_kernels = |name: &str| matches!(name, "maps.debug" | "progs.debug");
    mounts.lines().any(|line| line.starts_with(&mine))
        && fs::read_dir(BPFFS).is_ok_and(|entries| {
            entries
                .filter_map(Result::ok)
                .all(|entry| entry.file_name().to_str().is_some_and(is_kernels))
        })
}
