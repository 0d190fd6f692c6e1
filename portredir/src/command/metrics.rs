//! `portredir metrics`: the metrics once, for the textfile collector of node_exporter.

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;

use super::print;
use crate::cli::MetricsArgs;
use crate::config::file::is_standard;
use crate::controller::error::ControllerError;
use crate::controller::status;

/// `portredir metrics`.
///
/// # Errors
///
/// Nothing is active, which the metrics say, too; this user may not read it; or the file
/// cannot be written.
pub fn metrics(args: &MetricsArgs) -> anyhow::Result<()> {
    let (answer, nothing) = match status::read() {
        Ok(answer) => (Some(answer), None),
        Err(
            error @ (ControllerError::NotRunning
            | ControllerError::Ending
            | ControllerError::LeftFilters(_)),
        ) => (None, Some(error)),
        Err(error) => return Err(error.into()),
    };
    let text = status::metrics(answer);
    match args.output.as_deref().filter(|path| !is_standard(path)) {
        Some(path) => {
            write(path, &text).with_context(|| format!("write {}", path.display()))?;
        }
        None => print(&text)?,
    }
    match nothing {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Replaces a file in one step, so that the collector never reads a part. The collector
/// reads files of other users, and none whose name ends otherwise than `.prom`.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let mut file = tempfile::Builder::new()
        .prefix(".portredir-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    let mode = Permissions::from_mode(0o644);
    file.as_file().set_permissions(mode)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
