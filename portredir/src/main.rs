//! Parse, set up logging, run, exit with a code that scripts can rely on.

use std::process::ExitCode;

use clap::Parser as _;
use portredir::cli::Cli;
use portredir::plan::PlanError;
use portredir::preflight::PreflightError;
use portredir::rule::ConflictError;
use portredir::run;

/// Exit codes; 0 is done.
#[derive(Clone, Copy, Debug)]
enum Exit {
    Failed = 1,
    Usage = 2,
    NotPermitted = 4,
}

impl Exit {
    fn of(error: &anyhow::Error) -> Self {
        if error.is::<ConflictError>()
            || matches!(
                error.downcast_ref(),
                Some(PlanError::UnknownInterface { .. })
            )
        {
            Self::Usage
        } else if matches!(error.downcast_ref(), Some(PreflightError::Capabilities(_))) {
            Self::NotPermitted
        } else {
            Self::Failed
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default = if cli.verbose > 0 {
        "warn,portredir=debug"
    } else {
        "warn"
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default)).init();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run::run(&cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portredir: {error:#}");
            ExitCode::from(Exit::of(&error) as u8)
        }
    }
}
