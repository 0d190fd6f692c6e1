//! The directory of bpffs that keeps maps and links when the process ends.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{Uid, User, geteuid};
use thiserror::Error;

use super::bpf_link::detach;
use super::netns::netns_cookie;

/// The mount point of bpffs, for systemd and for us.
const BPFFS: &str = "/sys/fs/bpf";

/// The source that our mount of bpffs names.
const SOURCE: &str = "portredir";

/// Whether bpffs is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mount {
    /// bpffs is mounted.
    Mounted,
    /// No bpffs is mounted, and one can be.
    Missing,
    /// No bpffs is mounted, and a mount would vanish with the process.
    OwnNamespace,
}

/// Whether bpffs is mounted for this process.
#[must_use]
pub fn mount() -> Mount {
    if is_bpffs() {
        Mount::Mounted
    } else if has_own_mounts() {
        Mount::OwnNamespace
    } else {
        Mount::Missing
    }
}

/// An error of the directory.
#[derive(Debug, Error)]
pub enum PinError {
    /// bpffs is not mounted, and mounting it failed.
    #[error("bpffs is not mounted and mounting it failed; mount it with: mount -t bpf bpf {BPFFS}")]
    Mount(#[source] io::Error),
    /// A mount would vanish with the process.
    #[error(
        "bpffs is not mounted here, and this process has a mount namespace of its own, in which a \
         mount would not last (`ip netns exec` creates one; `nsenter --net=/run/netns/NAME` does \
         not)"
    )]
    OwnNamespace,
    /// Another user has the directory of the pins, and could remove or replace them.
    #[error(
        "{path} belongs to user {owner}, who could remove what is attached; end what that user \
         runs with: portredir down; or, if nothing runs, remove it with: rmdir {path}"
    )]
    Owner {
        /// The directory.
        path: String,
        /// The name or number of its owner.
        owner: String,
    },
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The path of the operation.
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
    /// The directory of the network namespace with this cookie; it may not exist.
    #[must_use]
    pub fn new(netns_cookie: u64) -> Self {
        Self(
            Path::new(BPFFS)
                .join("portredir")
                .join(netns_cookie.to_string()),
        )
    }

    /// The directory of the network namespace of this process; it may not exist.
    ///
    /// # Errors
    ///
    /// Those of [`netns_cookie`].
    pub fn current() -> io::Result<Self> {
        netns_cookie().map(Self::new)
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

    /// Whether the directory exists.
    ///
    /// # Errors
    ///
    /// When this user may not read the path.
    pub fn exists(&self) -> Result<bool, PinError> {
        self.0.try_exists().map_err(io_error("look up", &self.0))
    }

    /// Makes the directory, and mounts bpffs where it is missing.
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
            nix::mount::mount(Some(SOURCE), BPFFS, Some("bpf"), flags, Some("mode=700"))
                .map_err(|errno| PinError::Mount(errno.into()))?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(io_error("make", &self.0))?;
        // Without systemd, bpffs often has the mode 1777, and every user may make the
        // folder that all network namespaces share.
        let shared = self.0.parent().into_iter();
        shared
            .chain([self.dir()])
            .try_for_each(|dir| check_owner(dir, geteuid()))
    }

    /// Removes all links, and so detaches them; maps stay.
    ///
    /// # Errors
    ///
    /// [`PinError::Io`], with the path that is left.
    pub fn remove_links(&self) -> Result<(), PinError> {
        let mut names = self.names()?;
        names.retain(|name| {
            name.to_string_lossy()
                .contains(|c: char| c.is_ascii_lowercase())
        });
        // Hooks that rewrite replies or answer go after hooks that redirect.
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

    /// Removes all pins, then the mount, if it is ours and no other process uses it.
    ///
    /// # Errors
    ///
    /// [`PinError::Io`], with the path that is left.
    pub fn remove(&self) -> Result<(), PinError> {
        self.remove_links()?;
        self.remove_each(self.names()?, |path| fs::remove_file(path))?;
        remove_dir(&self.0)?;
        if let Some(parent) = self.0.parent()
            // Other network namespaces may have their pins in it.
            && remove_dir(parent).is_ok()
            && is_our_mount()
        {
            // The mount is busy when another process uses it.
            let _ = umount2(BPFFS, MntFlags::UMOUNT_NOFOLLOW);
        }
        Ok(())
    }
}

/// Refuses a directory of the pins that root or this user does not own.
fn check_owner(dir: &Path, user: Uid) -> Result<(), PinError> {
    let owner = fs::symlink_metadata(dir).map_err(io_error("look up", dir))?;
    let owner = Uid::from_raw(owner.uid());
    if owner.is_root() || owner == user {
        return Ok(());
    }
    let name = User::from_uid(owner).ok().flatten();
    Err(PinError::Owner {
        path: dir.display().to_string(),
        owner: name.map_or_else(|| owner.to_string(), |user| user.name),
    })
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

/// Whether the first process has another mount namespace. The check compares mounts,
/// because one mount is never in two namespaces, and few users may read the link
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

/// Whether the mount is one of ours, and empty.
fn is_our_mount() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // The kernel itself puts these there (kernel/bpf/preload).
    let is_kernels = |name: &str| matches!(name, "maps.debug" | "progs.debug");
    is_ours_on_top(&mounts)
        && fs::read_dir(BPFFS).is_ok_and(|entries| {
            entries
                .filter_map(Result::ok)
                .all(|entry| entry.file_name().to_str().is_some_and(is_kernels))
        })
}

/// Whether the mount that is seen is ours. Another one may lie over ours: that one stays.
fn is_ours_on_top(mounts: &str) -> bool {
    let mut words = mounts.lines().map(|line| line.split(' '));
    let last = words.rfind(|words| words.clone().nth(1) == Some(BPFFS));
    last.is_some_and(|mut words| words.next() == Some(SOURCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_over_ours_is_not_ours() {
        let ours = "sysfs /sys sysfs rw 0 0\nportredir /sys/fs/bpf bpf rw,mode=700 0 0\n";
        assert!(is_ours_on_top(ours));
        assert!(!is_ours_on_top(&format!(
            "{ours}bpf /sys/fs/bpf bpf rw 0 0\n"
        )));
        assert!(is_ours_on_top(&format!("{ours}tmpfs /run tmpfs rw 0 0\n")));
        assert!(!is_ours_on_top("sysfs /sys sysfs rw 0 0\n"));
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let owner = geteuid();
        assert!(check_owner(dir.path(), owner).is_ok());
        let other = Uid::from_raw(owner.as_raw() + 1);
        let of_root = check_owner(Path::new("/"), other);
        assert!(of_root.is_ok(), "{of_root:?}");
        if owner.is_root() {
            std::os::unix::fs::chown(dir.path(), Some(other.as_raw()), None).expect("root");
        }
        let user = if owner.is_root() { owner } else { other };
        let error = check_owner(dir.path(), user).expect_err("a directory of another user");
        let text = error.to_string();
        assert!(text.contains(" belongs to user "), "{text}");
    }
}
