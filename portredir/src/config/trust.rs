//! The check that nobody else can change a configuration file. A file decides what root
//! redirects, so only root and the user of this program may be able to write it, as sshd
//! demands of its own files.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use nix::unistd::{Uid, User, geteuid};

use super::error::{ConfigError, DIR};
use crate::sys::path::Trail;

/// Checks an open file, and every folder and symbolic link that leads to it.
///
/// # Errors
///
/// [`ConfigError::Writable`], [`ConfigError::Owner`].
pub(super) fn check(path: &Path, file: &Metadata) -> Result<(), ConfigError> {
    let trusted = trusted(path);
    let kind = file.file_type();
    if kind.is_char_device() {
        // Nobody but root makes a device.
        return Ok(());
    }
    check_object(path, file, &trusted)?;
    let trail = Trail::follow(path).map_err(|error| ConfigError::read(path, error))?;
    if trail.is_open_file {
        // The way to a pipe of the shell says nothing about the pipe.
        return Ok(());
    }
    for step in &trail.steps {
        check_object(&step.path, &step.metadata, &trusted)?;
    }
    Ok(())
}

/// The users whose files are obeyed: root, the user of this process, and the user who
/// called sudo or doas. The files that a boot reads must be right without the caller.
fn trusted(path: &Path) -> Vec<u32> {
    let mut trusted = vec![0, geteuid().as_raw()];
    if !path.starts_with(DIR) {
        let sudo = std::env::var("SUDO_UID").ok();
        trusted.extend(sudo.and_then(|uid| uid.parse::<u32>().ok()));
        let doas = std::env::var("DOAS_USER").ok();
        let doas = doas.and_then(|name| User::from_name(&name).ok()?);
        trusted.extend(doas.map(|user| user.uid.as_raw()));
    }
    trusted
}

fn check_object(path: &Path, object: &Metadata, trusted: &[u32]) -> Result<(), ConfigError> {
    let name = path.display().to_string();
    if !trusted.contains(&object.uid()) {
        let user = User::from_uid(Uid::from_raw(object.uid())).ok().flatten();
        return Err(ConfigError::Owner {
            path: name,
            owner: user.map_or_else(|| object.uid().to_string(), |user| user.name),
        });
    }
    // In a sticky folder, as /tmp is, nobody can replace what belongs to others. The
    // mode of a symbolic link has no meaning.
    let is_sticky = object.is_dir() && object.mode() & 0o1000 != 0;
    let by_others = object.mode() & 0o022;
    if by_others == 0 || is_sticky || object.is_symlink() {
        return Ok(());
    }
    let (who, mode) = match by_others {
        0o020 => ("group-writable", "g-w"),
        0o002 => ("world-writable", "o-w"),
        _ => ("world-writable and group-writable", "go-w"),
    };
    Err(ConfigError::Writable {
        path: name,
        who,
        mode,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn verdict(path: &Path) -> String {
        let file = File::open(path).expect("a file");
        let metadata = file.metadata().expect("metadata");
        check(path, &metadata).map_or_else(|error| error.to_string(), |()| "right".to_owned())
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
    }

    /// A folder with a file, both of this user.
    fn folder_and_file() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rules.toml");
        fs::write(&path, "rules = []\n").expect("a file");
        set_mode(&path, 0o644);
        (dir, path)
    }

    #[test]
    fn every_mode_on_the_way_counts() {
        let (dir, path) = folder_and_file();
        assert_eq!(verdict(&path), "right");
        for (mode, hint) in [(0o664, "g-w"), (0o646, "o-w"), (0o666, "go-w")] {
            set_mode(&path, mode);
            let message = verdict(&path);
            let expected = format!("chmod {hint} {}", path.display());
            assert!(message.ends_with(&expected), "{mode:o}: {message}");
        }
        set_mode(&path, 0o644);
        for (mode, is_right) in [
            (0o777, false),
            (0o770, false),
            (0o1777, true),
            (0o755, true),
        ] {
            set_mode(dir.path(), mode);
            assert_eq!(verdict(&path) == "right", is_right, "{mode:o}");
        }
    }

    #[test]
    fn a_link_is_no_way_around() {
        let (dir, path) = folder_and_file();
        let (open, hidden) = folder_and_file();
        set_mode(open.path(), 0o777);
        // Two links, of which the second is in a folder that everybody may write.
        fs::remove_file(&hidden).expect("remove");
        symlink(&path, &hidden).expect("a link");
        let link = dir.path().join("link.toml");
        symlink(&hidden, &link).expect("a link");
        let message = verdict(&link);
        assert!(message.contains("world-writable"), "{message}");
        set_mode(open.path(), 0o755);
        assert_eq!(verdict(&link), "right");
    }

    #[test]
    fn every_owner_on_the_way_counts() {
        if !geteuid().is_root() {
            println!("skipped: needs root, to give a file away");
            return;
        }
        let (dir, path) = folder_and_file();
        for object in [dir.path(), &path] {
            chown(object, Some(65534), None).expect("chown");
            let message = verdict(&path);
            let expected = format!("chown root {}", object.display());
            assert!(message.ends_with(&expected), "{message}");
            chown(object, Some(0), None).expect("chown");
        }
    }
}
