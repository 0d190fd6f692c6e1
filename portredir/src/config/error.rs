//! The errors of configuration files.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::table::TableError;
use crate::exit::ExitCode;
use crate::rule::{Origin, SourcedError};
use crate::ruleset::shadow::ConflictError;

/// The default directory of the files.
pub const DIR: &str = "/etc/portredir";

/// An error of a file.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}: {error}{hint}")]
    Read {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        error: io::Error,
        /// Advice for the user.
        hint: &'static str,
    },
    /// Others may write the file, or replace it in a folder; root would obey them.
    #[error("{path} is {who}, so others decide what root redirects; fix with: chmod {mode} {path}")]
    Writable {
        /// The path of the file or of a folder that leads to it.
        path: String,
        /// The users who may write.
        who: &'static str,
        /// The argument of chmod(1) that mends it.
        mode: &'static str,
    },
    /// The file, or a folder that leads to it, belongs to another user, whom root would
    /// obey.
    #[error(
        "{path} belongs to user {owner}, who would decide what root redirects; fix with: chown root \
         {path}"
    )]
    Owner {
        /// The path of the file or of a folder that leads to it.
        path: String,
        /// The owner.
        owner: String,
    },
    /// The file has no end, or is not a configuration.
    #[error(
        "{path} is larger than {largest_mib} MiB, the largest configuration; name another file"
    )]
    Large {
        /// The path of the file.
        path: String,
        /// The largest size in MiB.
        largest_mib: u64,
    },
    /// The environment names a path that cannot be used.
    #[error("{0} (named by PORTREDIR_CONFIG in the environment)")]
    Variable(Box<Self>),
    /// The file has a syntax error or an unknown key: the library's message, with line
    /// and column.
    #[error("{path}: {message}")]
    Toml {
        /// The path of the file.
        path: String,
        /// The message.
        message: String,
    },
    /// A rule cannot be read.
    #[error(transparent)]
    Rule(#[from] SourcedError),
    /// A `[[rule]]` table cannot be read.
    #[error("{origin}: {error}")]
    Table {
        /// The place of the table.
        origin: Origin,
        /// The mistake.
        error: TableError,
    },
    /// Several rules cannot be read: the mistakes in the order of the file.
    #[error("{}", first_of(.0))]
    Several(Vec<Self>),
    /// The rules contradict each other.
    #[error(transparent)]
    Conflict(#[from] ConflictError),
    /// The file cannot be written.
    #[error("write {path}: {error}")]
    Write {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        error: io::Error,
    },
    /// The folder of the file does not exist.
    #[error("directory {0} does not exist; create it with: mkdir -p {0}")]
    NoFolder(String),
    /// The path is nothing that can take a text.
    #[error("{path} is a {kind}; save to a file, or to `-` to print the text")]
    NotWritable {
        /// The path.
        path: String,
        /// The kind of object.
        kind: &'static str,
    },
    /// Saved rules would come twice at the next start.
    #[error(
        "{} also defines rules, which would then be loaded twice; move that file away first, or save \
         to another path", .0.display()
    )]
    Beside(PathBuf),
}

/// The number of mistakes that are worth reading at once.
const MOST_SHOWN: usize = 20;

/// The first mistakes, each on lines of its own, and the number of the others.
fn first_of(mistakes: &[ConfigError]) -> String {
    let shown = mistakes.iter().take(MOST_SHOWN).map(ToString::to_string);
    let rest = mistakes.len().saturating_sub(MOST_SHOWN);
    let rest = (rest > 0).then(|| format!("mistakes that are not shown: {rest}"));
    shown.chain(rest).collect::<Vec<_>>().join("\n")
}

impl ConfigError {
    /// The one mistake, or all of them; `None` when there is none.
    pub(super) fn of(mut mistakes: Vec<Self>) -> Option<Self> {
        match mistakes.len() {
            0 | 1 => mistakes.pop(),
            _ => Some(Self::Several(mistakes)),
        }
    }

    /// The error of a path that cannot be read.
    pub(super) fn read(path: &Path, error: io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::NotFound if path.starts_with(DIR) => {
                "; create the file, or give rules to `portredir up`"
            }
            io::ErrorKind::NotFound => "; create the file, or name another one",
            _ => "",
        };
        Self::Read {
            path: path.display().to_string(),
            error,
            hint,
        }
    }

    /// The error of a path that cannot be written.
    pub(super) fn write(path: &Path, error: io::Error) -> Self {
        Self::Write {
            path: path.display().to_string(),
            error,
        }
    }

    /// The exit code for this error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Variable(error) => error.exit_code(),
            Self::Read { error, .. } | Self::Write { error, .. } => match error.kind() {
                // EPERM comes from an immutable file, which privileges do not help.
                io::ErrorKind::PermissionDenied if error.raw_os_error() == Some(libc::EACCES) => {
                    ExitCode::NotPermitted
                }
                // A folder that is there and takes no files, as /proc.
                io::ErrorKind::NotFound if matches!(self, Self::Write { .. }) => ExitCode::Failed,
                io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::IsADirectory => ExitCode::Usage,
                _ => ExitCode::Failed,
            },
            _ => ExitCode::Usage,
        }
    }
}
