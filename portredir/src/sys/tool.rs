//! Programs of the host that are asked, and never told to change anything.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use thiserror::Error;

/// The reason why a program gives no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ToolError {
    /// No such program is installed.
    #[error("{0} is not installed")]
    Missing(&'static str),
    /// The program needs a privilege.
    #[error("needs root")]
    NotPermitted,
    /// The program failed.
    #[error("{program} failed: {why}")]
    Failed {
        /// The program.
        program: &'static str,
        /// The first line of what it said.
        why: String,
    },
}

/// Runs a program to its end, and returns what it printed.
///
/// # Errors
///
/// [`ToolError`].
pub fn output(program: &'static str, args: &[&str]) -> Result<String, ToolError> {
    let path = find(program).ok_or(ToolError::Missing(program))?;
    let failed = |why: String| ToolError::Failed { program, why };
    let output = Command::new(path)
        .args(args)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error: io::Error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if [
        "Operation not permitted",
        "Permission denied",
        "must be root",
    ]
    .iter()
    .any(|words| said.contains(words))
    {
        return Err(ToolError::NotPermitted);
    }
    let first = said.lines().next().unwrap_or_default();
    Err(failed(first.to_owned()))
}

/// The path of a program. Users without privileges seldom have the directories of
/// administrators in PATH.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let mut candidates = std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .chain(usual)
        .map(|dir| dir.join(program));
    candidates.find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_failures() {
        assert_eq!(output("echo", &["a", "b"]), Ok("a b\n".to_owned()));
        let missing = "portredir-no-such-program";
        assert_eq!(output(missing, &[]), Err(ToolError::Missing(missing)));
        let failed = output("ls", &["/nonexistent-portredir"]).expect_err("a failure");
        assert!(matches!(failed, ToolError::Failed { .. }), "{failed:?}");
        let refused = output("sh", &["-c", "echo 'x: Permission denied' >&2; exit 1"]);
        assert_eq!(refused, Err(ToolError::NotPermitted));
    }
}
