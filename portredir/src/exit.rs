//! The exit codes of the program.

/// The exit codes, which scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// The program did its work.
    Done = 0,
    /// A step failed.
    Failed = 1,
    /// The command line, the environment or a file is wrong.
    Usage = 2,
    /// No redirect runs in this network namespace.
    NotRunning = 3,
    /// A privilege is missing.
    NotPermitted = 4,
    /// The redirect, or the host, is not as it should be.
    Degraded = 5,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
