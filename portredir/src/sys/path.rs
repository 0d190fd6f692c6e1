//! The way of a path through folders and symbolic links.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

/// The number of symbolic links that the kernel follows: `MAXSYMLINKS` of Linux.
const MOST_LINKS: usize = 40;

/// An object that the kernel meets on the way: a folder, a symbolic link, or the end.
#[derive(Clone, Debug)]
pub struct Step {
    /// The path of the object, of which only the last part can be a symbolic link.
    pub path: PathBuf,
    /// The metadata of the object itself, as `lstat(2)` returns it.
    pub metadata: Metadata,
}

/// The way of a path.
#[derive(Clone, Debug)]
pub struct Trail {
    /// The objects on the way, in order, from the root on. The last one is the end, if
    /// the end exists.
    pub steps: Vec<Step>,
    /// The path of the end, without symbolic links, whether the end exists or not.
    pub end: PathBuf,
    /// Whether the end is an open file of a process, such as `/proc/self/fd/1`. Such a
    /// link leads to the file itself and not to a path.
    pub is_open_file: bool,
}

impl Trail {
    /// Follows a path as the kernel does.
    ///
    /// # Errors
    ///
    /// A folder of the path does not exist or may not be searched, or there are too many
    /// symbolic links.
    pub fn follow(path: &Path) -> io::Result<Self> {
        let mut rest = Vec::new();
        push(&mut rest, &std::path::absolute(path)?);
        let mut trail = Self {
            steps: vec![step("/".into())?],
            end: "/".into(),
            is_open_file: false,
        };
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                trail.end.pop();
                continue;
            }
            let next = trail.end.join(name);
            let step = match step(next.clone()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && rest.is_empty() => {
                    trail.end = next;
                    break;
                }
                step => step?,
            };
            let is_link = step.metadata.is_symlink();
            trail.steps.push(step);
            if is_link && is_fd_folder(&trail.end) {
                trail.end = next;
                trail.is_open_file = true;
                break;
            }
            if !is_link {
                trail.end = next;
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = fs::read_link(&next)?;
            if target.is_absolute() {
                trail.end = "/".into();
            }
            push(&mut rest, &target);
        }
        Ok(trail)
    }
}

/// Adds the parts of a path, the first one on top.
fn push(rest: &mut Vec<OsString>, path: &Path) {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    });
    rest.extend(parts);
}

fn step(path: PathBuf) -> io::Result<Step> {
    let metadata = fs::symlink_metadata(&path)?;
    Ok(Step { path, metadata })
}

/// Whether a folder holds the open files of a process.
fn is_fd_folder(folder: &Path) -> bool {
    folder.starts_with("/proc") && folder.file_name().is_some_and(|name| name == "fd")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_their_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("a path");
        fs::create_dir(root.join("real")).expect("a directory");
        symlink("real", root.join("folder")).expect("a link");
        symlink("../later", root.join("real/link")).expect("a link");
        let trail = Trail::follow(&root.join("folder/./link")).expect("a trail");
        assert_eq!(trail.end, root.join("later"));
        assert!(!trail.is_open_file);
        let last = &trail.steps.last().expect("steps").path;
        assert_eq!(*last, root.join("real/link"));
        symlink("loop", root.join("loop")).expect("a link");
        let error = Trail::follow(&root.join("loop")).expect_err("a loop");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        assert!(Trail::follow(&root.join("none/file")).is_err());
    }

    #[test]
    fn an_open_file_is_no_path() {
        let trail = Trail::follow(Path::new("/dev/stdin")).expect("a trail");
        assert!(trail.is_open_file, "{trail:?}");
    }
}
