//! Parse, set up logging, run, exit with a code that scripts can rely on.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use portredir::cli::{Cli, Command, PlanArgs};
use portredir::facts::{Facts, Loaded};
use portredir::interface::Netlink;
use portredir::plan::UsageError;
use portredir::preflight::PreflightError;
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
        if error.is::<UsageError>() {
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
    let command = async {
        match &cli.command {
            Some(Command::Plan(args)) => plan(args).await,
            None => run::run(&cli.run).await,
        }
    };
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portredir: {error:#}");
            ExitCode::from(Exit::of(&error) as u8)
        }
    }
}

/// Prints the plan. That an engine is impossible is said at its end as well.
async fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let settings = args.options.settings();
    let snapshot = Netlink::open()?.snapshot().await?;
    snapshot.check(&settings)?;
    let facts = Facts::read(settings.cgroup.as_deref());
    let plan = snapshot.plan(&settings, &facts, &BTreeMap::new(), &Loaded);
    let text = if args.json {
        serde_json::to_string(&plan.report())? + "\n"
    } else {
        plan.to_string()
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("print the plan")?;
    match plan.refuse.into_iter().next() {
        Some(refused) => Err(refused.into()),
        None => Ok(()),
    }
}
