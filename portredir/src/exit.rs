//! How the program ends.

/// The exit codes, which scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// Something failed.
    Failed = 1,
    /// The command line, the environment or a file is wrong.
    Usage = 2,
    /// Nothing runs in this network namespace.
    NotRunning = 3,
    /// A privilege is missing.
    NotPermitted = 4,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
