//! The cgroup v2 hierarchy.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Whether a path is a directory of a cgroup v2 hierarchy.
#[must_use]
pub fn is_cgroup2(path: &Path) -> bool {
    path.is_dir() && statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// The mount point of the root of the hierarchy. Hosts that still have cgroup v1 mount
/// the root elsewhere, most of them at /sys/fs/cgroup/unified.
#[must_use]
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // Every directory but the root has this file. A container sees another directory as
    // the root, and most processes of the host are not in it.
    let is_root = |mount: &PathBuf| is_cgroup2(mount) && !mount.join("cgroup.events").exists();
    cgroup_mounts(&mounts).into_iter().find(is_root)
}

/// The mount points of cgroup v2; mounts of the root come first.
fn cgroup_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mut mounts: Vec<_> = mountinfo
        .lines()
        .filter_map(|line| {
            // proc_pid_mountinfo(5): a dash ends the optional fields, and the type of the
            // filesystem follows.
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (root, mount_point) = (fields.next()?, fields.next()?);
            filesystem
                .starts_with("cgroup2 ")
                .then(|| (root != "/", PathBuf::from(mount_point)))
        })
        .collect();
    mounts.sort_by_key(|&(is_part, _)| is_part);
    mounts.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_among_the_mounts() {
        let mounts = "\
            31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            50 23 0:38 /a.slice /mnt/part rw shared:9 - cgroup2 cgroup2 rw\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            cgroup_mounts(mounts),
            [Path::new("/sys/fs/cgroup/unified"), Path::new("/mnt/part")]
        );
        assert!(cgroup_mounts("nonsense\n").is_empty());
    }
}
