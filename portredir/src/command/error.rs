//! How the program ends by an error.

use crate::config::file::ConfigError;
use crate::controller::error::{ChangeError, ControllerError};
use crate::exit::ExitCode;
use crate::host::preflight::PreflightError;
use crate::loader::pinned::PinnedError;
use crate::plan::UsageError;
use crate::rule::SourcedError;
use crate::ruleset::shadow::ConflictError;

/// The exit code of an error: what the first error of its chain says that knows one.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|error| {
        if let Some(error) = error.downcast_ref::<ControllerError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<ChangeError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<PreflightError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = error.downcast_ref::<PinnedError>() {
            return Some(error.exit_code());
        }
        let is_usage = error.is::<UsageError>()
            || error.is::<SourcedError>()
            || error.is::<ConflictError>()
            || error.is::<ConfigError>();
        is_usage.then_some(ExitCode::Usage)
    });
    code.unwrap_or(ExitCode::Failed)
}
