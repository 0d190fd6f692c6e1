//! Parse, set up logging, run, exit with a code that scripts can rely on.

use std::process::ExitCode;

use portredir::cli::{self, Cli, Command, Mistake};
use portredir::command::log::Journal;
use portredir::command::{
    change, completions, connections, diff, doctor, error, explain, features, import, lines, log,
    man, metrics, plan, read, run, status, targets, top, trace,
};
use portredir::controller::change::Turn;
use portredir::exit;

fn main() -> ExitCode {
    completions::answer_shell();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Mistake::Parser(error)) => error.exit(),
        Err(Mistake::Text(text)) => {
            lines::say_error(&format!("portredir: {text}"));
            return exit::ExitCode::Usage.into();
        }
    };
    if cli.quiet {
        lines::be_quiet();
    }
    let default = if cli.verbose > 0 {
        "warn,portredir=debug"
    } else {
        "warn"
    };
    let journal = if cli.is_staying() {
        Journal::Warnings
    } else {
        Journal::Off
    };
    // The live view shows the log as well.
    let target = if has_view(&cli) {
        env_logger::Target::Pipe(Box::new(lines::LineWriter))
    } else {
        env_logger::Target::Stderr
    };
    log::init(default, journal, target);
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(command(&cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            lines::say_error(&format!("portredir: {error:#}"));
            exit_code(&error).into()
        }
    }
}

/// The exit code of an error.
fn exit_code(error: &anyhow::Error) -> portredir::exit::ExitCode {
    #[cfg(feature = "agent")]
    if let Some(error) = error.downcast_ref::<portredir::agent::needs::NeedError>() {
        return error.exit_code();
    }
    error::exit_code(error)
}

/// Whether the command may have the whole terminal.
fn has_view(cli: &Cli) -> bool {
    match cli.command {
        None => run::shows_view(&cli.run),
        Some(Command::Top(_)) => true,
        Some(_) => false,
    }
}

async fn command(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        None => run::run(&cli.run).await,
        Some(Command::Plan(args)) => plan::plan(args).await,
        Some(Command::Up(args)) => change::up(args).await,
        Some(Command::Down(args)) => change::down(args).await,
        Some(Command::Add(args)) => change::add(args).await,
        Some(Command::Rm(args)) => change::rm(args).await,
        Some(Command::Replace(args)) => change::replace(args).await,
        Some(Command::Apply(args)) => change::apply(args).await,
        Some(Command::Drain(args)) => change::turn(args.target, Turn::Drain).await,
        Some(Command::Undrain(args)) => change::turn(args.target, Turn::Undrain).await,
        Some(Command::Confirm) => change::confirm().await,
        Some(Command::Save(args)) => read::save(args),
        Some(Command::Check(args)) => plan::check(args),
        Some(Command::Diff(args)) => diff::diff(args),
        Some(Command::Import(args)) => import::import(args),
        Some(Command::Rules(args)) => read::rules(*args),
        Some(Command::Status(args)) => status::status(*args).await,
        Some(Command::Targets(args)) => targets::targets(*args).await,
        Some(Command::Trace(args)) => trace::trace(args).await,
        Some(Command::Connections(args)) => connections::connections(args).await,
        Some(Command::Metrics(args)) => metrics::metrics(args),
        Some(Command::Top(args)) => top::top(*args).await,
        Some(Command::Doctor(args)) => doctor::doctor(args).await,
        Some(Command::Explain(args)) => explain::explain(args).await,
        Some(Command::Bench(args)) => portredir::bench::run(args).await,
        Some(Command::Features(args)) => features::features(*args),
        Some(Command::Completions(args)) => completions::completions(*args),
        Some(Command::Man(args)) => man::man(args),
        Some(Command::Watch) => change::watch().await,
        #[cfg(feature = "agent")]
        Some(Command::Agent(args)) => agent(args).await,
    }
}

/// `portredir agent`.
#[cfg(feature = "agent")]
async fn agent(args: &cli::AgentArgs) -> anyhow::Result<()> {
    use portredir::agent::run::{AgentConfig, AgentError, run};
    use portredir::agent::{disk, manifest};
    use portredir::controller::event_loop::Signals;
    if args.print_crds {
        return portredir::command::print(&manifest::crds());
    }
    if args.cleanup {
        let down = cli::DownArgs {
            force: false,
            dry_run: false,
            drain_timeout: None,
        };
        change::down(&down).await?;
        return Ok(disk::remove(&args.state)?);
    }
    if args.pause {
        Signals::new()?.next().await;
        return Ok(());
    }
    let config = AgentConfig {
        node: args.node.clone().unwrap_or_default(),
        listen: args.listen,
        state: args.state.clone(),
        stale_after: args.stale_after,
        namespace: args.namespace.clone(),
        settings: args.settings()?,
    };
    match run(config, portredir::command::event::print).await {
        // Its exit code is that of other commands.
        Err(AgentError::Controller(error)) => Err(error.into()),
        Err(AgentError::Need(error)) => Err(error.into()),
        result => Ok(result?),
    }
}
