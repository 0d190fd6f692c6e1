//! Where and how settings are saved. Whatever a path is, it stays that: a symbolic link
//! is followed, a device or a pipe is written to, a file keeps its mode and owner, and a
//! text that a person wrote is kept beside the new one.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::error::{ConfigError, DIR};
use super::file::{self, to_toml};
use super::settings::Settings;
use crate::sys::path::Trail;

/// The name of the main file in a folder.
const MAIN: &str = "rules.toml";

/// A place to save to, after every check that is possible without writing.
#[derive(Debug)]
pub enum Place {
    /// A device, a pipe or an open file, which takes the text as it is.
    Stream(PathBuf),
    /// A file, which is replaced in one step.
    File {
        /// The path of the file, without symbolic links.
        path: PathBuf,
        /// The file that is there.
        old: Option<Old>,
    },
}

/// A file that a new one replaces.
#[derive(Debug)]
pub struct Old {
    metadata: Metadata,
    /// The contents, if `portredir save` did not write exactly this.
    written_by_person: Option<Vec<u8>>,
}

impl Place {
    /// The place that a path names, in a folder its `rules.toml`; `None` for standard
    /// output.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]: the path cannot be written, or saved rules would be loaded twice
    /// at the next start.
    pub fn find(path: &Path) -> Result<Option<Self>, ConfigError> {
        if file::is_standard(path) {
            return Ok(None);
        }
        let path = if path.is_dir() {
            &path.join(MAIN)
        } else {
            path
        };
        refuse_beside(path)?;
        let trail = match Trail::follow(path) {
            Ok(trail) => trail,
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_default(path) => {
                return Ok(Some(Self::new_file(path.to_owned())));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(no_folder(path));
            }
            Err(error) => return Err(ConfigError::write(path, error)),
        };
        if trail.is_open_file {
            let is_output = is_standard_output(path);
            return Ok((!is_output).then(|| Self::Stream(path.to_owned())));
        }
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(ConfigError::NoFolder(path.display().to_string()));
        }
        let end = trail.end;
        refuse_beside(&end)?;
        let old = trail.steps.into_iter().next_back();
        match old.filter(|step| step.path == end) {
            Some(step) => Self::of_object(end, step.metadata).map(Some),
            None => {
                check_access(end.parent().unwrap_or(&end))?;
                Ok(Some(Self::new_file(end)))
            }
        }
    }

    fn of_object(path: PathBuf, object: Metadata) -> Result<Self, ConfigError> {
        let kind = object.file_type();
        if kind.is_file() {
            return Self::old_file(path, object);
        }
        if kind.is_char_device() || kind.is_fifo() {
            return Ok(Self::Stream(path));
        }
        let kind = if kind.is_block_device() {
            "block device"
        } else if kind.is_socket() {
            "socket"
        } else {
            "directory"
        };
        let path = path.display().to_string();
        Err(ConfigError::NotWritable { path, kind })
    }

    const fn new_file(path: PathBuf) -> Self {
        Self::File { path, old: None }
    }

    fn old_file(path: PathBuf, metadata: Metadata) -> Result<Self, ConfigError> {
        check_access(&path)?;
        let bytes = fs::read(&path).map_err(|error| ConfigError::read(&path, error))?;
        let written_by_person = (!is_saved(&path, &bytes)).then_some(bytes);
        let old = Some(Old {
            metadata,
            written_by_person,
        });
        Ok(Self::File { path, old })
    }

    /// Saves a text. A file is at any moment either the old one or the whole new one.
    /// Returns the path of the backup, if there is one.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Write`].
    pub fn write(&self, text: &str) -> Result<Option<PathBuf>, ConfigError> {
        let bytes = text.as_bytes();
        match self {
            Self::Stream(path) => {
                let stream = File::options().append(true).open(path);
                let written = stream.and_then(|mut stream| stream.write_all(bytes));
                written.map_err(|error| ConfigError::write(path, error))?;
            }
            Self::File { path, old: None } => {
                if let Some(folder) = path.parent().filter(|_| is_default(path)) {
                    let made = fs::create_dir_all(folder);
                    made.map_err(|error| ConfigError::write(path, error))?;
                }
                replace(path, None, bytes).map_err(|error| ConfigError::write(path, error))?;
            }
            Self::File {
                path,
                old: Some(old),
            } => return old.replace(path, bytes),
        }
        Ok(None)
    }
}

impl Old {
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<Option<PathBuf>, ConfigError> {
        let mut backup = None;
        if let Some(old) = &self.written_by_person {
            let mut name = path.as_os_str().to_owned();
            name.push("~");
            let name = PathBuf::from(name);
            let kept = replace(&name, Some(&self.metadata), old);
            kept.map_err(|error| ConfigError::write(&name, error))?;
            backup = Some(name);
        }
        let result = match replace(path, Some(&self.metadata), bytes) {
            // Nothing can be renamed over a mount point, and not everybody may give a
            // file away.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM)) => {
                fs::write(path, bytes)
            }
            result => result,
        };
        result.map_err(|error| ConfigError::write(path, error))?;
        Ok(backup)
    }
}

/// Writes a file beside another one, then renames it over that one. Mode and owner are
/// those of `old`.
fn replace(path: &Path, old: Option<&Metadata>, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    let mut file = tempfile::Builder::new()
        .prefix(".portredir-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    if let Some(old) = old {
        let new = file.as_file().metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
        }
        // A change of the owner would remove the set-user-ID bit.
        let mode = Permissions::from_mode(old.mode() & 0o7777);
        file.as_file().set_permissions(mode)?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Whether these bytes are exactly what saving them would write, so that no comment is
/// lost.
fn is_saved(path: &Path, bytes: &[u8]) -> bool {
    let saved = file::parse(path, bytes.to_owned());
    saved.is_ok_and(|config| to_toml(&config.over(&Settings::default())).as_bytes() == bytes)
}

/// Whether a path, such as `/dev/stdout`, is what standard output is.
fn is_standard_output(path: &Path) -> bool {
    match (fs::metadata("/proc/self/fd/1"), fs::metadata(path)) {
        (Ok(output), Ok(named)) => (output.dev(), output.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Refuses a `rules.toml` beside a `conf.d` with files.
fn refuse_beside(path: &Path) -> Result<(), ConfigError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    if path.file_name().is_some_and(|name| name == MAIN)
        && let Some(other) = file::additions(folder)?.into_iter().next()
    {
        return Err(ConfigError::Beside(other));
    }
    Ok(())
}

/// Whether this is the path for which the folder is made.
fn is_default(path: &Path) -> bool {
    path == Path::new(DIR).join(MAIN)
}

fn no_folder(path: &Path) -> ConfigError {
    let folder = path.parent().unwrap_or(path);
    ConfigError::NoFolder(folder.display().to_string())
}

/// Finds out whether an object can be written, as far as the kernel tells without
/// writing: not on a read-only file system, and not when it is immutable.
fn check_access(path: &Path) -> Result<(), ConfigError> {
    eaccess(path, AccessFlags::W_OK)
        .map_err(|errno| ConfigError::write(path, io::Error::from(errno)))
}

#[cfg(test)]
mod tests;
