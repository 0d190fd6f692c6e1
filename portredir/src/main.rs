//! Parse, set up logging, run, exit with a code that scripts can rely on.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use portredir::bench;
use portredir::cli::{ChangeArgs, Cli, Command, PlanArgs, SaveArgs, UpArgs};
use portredir::command::run;
use portredir::config::file::{self, ConfigError};
use portredir::config::settings::Settings;
use portredir::controller::transaction::{self, LifecycleError};
use portredir::controller::{self, event_loop};
use portredir::host::features::{Facts, Loaded};
use portredir::host::netlink::Netlink;
use portredir::host::preflight::PreflightError;
use portredir::ipc::client::{Answer, Role};
use portredir::plan::UsageError;
use portredir::rule::{self, Rule, Sourced, SourcedError};
use portredir::ruleset::history::History;
use portredir::ruleset::shadow::{self, ConflictError};
use portredir::state::{State, StateError};

/// Exit codes; 0 is done.
#[derive(Clone, Copy, Debug)]
enum Exit {
    Failed = 1,
    Usage = 2,
    NotRunning = 3,
    NotPermitted = 4,
}

impl Exit {
    fn of(error: &anyhow::Error) -> Self {
        let is_usage = error.is::<UsageError>()
            || error.is::<SourcedError>()
            || error.is::<ConflictError>()
            || error.is::<ConfigError>();
        let is_not_permitted =
            matches!(error.downcast_ref(), Some(PreflightError::Capabilities(_)))
                || matches!(error.downcast_ref(), Some(StateError::NotPermitted(_)));
        if is_usage {
            Self::Usage
        } else if matches!(
            error.downcast_ref(),
            Some(LifecycleError::NotRunning | LifecycleError::Ending)
        ) {
            Self::NotRunning
        } else if is_not_permitted {
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
        .and_then(|runtime| runtime.block_on(command(&cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portredir: {error:#}");
            ExitCode::from(Exit::of(&error) as u8)
        }
    }
}

async fn command(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        None => run::run(&cli.run, cli.run.options.settings()?).await,
        Some(Command::Plan(args)) => plan(args).await,
        Some(Command::Up(args)) => up(args).await,
        Some(Command::Down(args)) if args.force => transaction::down_by_force().await,
        Some(Command::Down(args)) => transaction::down(args.drain_timeout, args.dry_run).await,
        Some(Command::Add(args)) => add(args).await,
        Some(Command::Rm(args)) => rm(args).await,
        Some(Command::Apply(args)) => {
            transaction::change(
                args.care.into(),
                |now| Ok(file::load(&args.file)?.over(now)),
            )
            .await
        }
        Some(Command::Confirm) => transaction::confirm().await,
        Some(Command::Save(args)) => save(args).await,
        Some(Command::Check(args)) => {
            let settings = file::load(&args.path)?.over(&Settings::default());
            let rules = settings.rules.len();
            // There can be more of them than the maps hold.
            controller::compile(
                &State::empty(Settings::default()).next(settings, History::default()),
            )?;
            println!("{rules} rules are right");
            Ok(())
        }
        Some(Command::Rules(args)) => rules(&transaction::read().await?, args.json),
        Some(Command::Status(args)) => status(&transaction::read().await?, args.json),
        Some(Command::Bench(args)) => bench::run(args).await,
        Some(Command::Follow) => event_loop::follow().await,
    }
}

/// Prints the plan. That an engine is impossible is said at its end as well.
async fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
    let snapshot = Netlink::open()?.snapshot().await?;
    snapshot.check(&settings)?;
    let facts = Facts::read(settings.cgroup.as_deref());
    let plan = snapshot.plan(&settings, &facts, &BTreeMap::new(), &Loaded);
    let text = if args.json {
        serde_json::to_string(&plan.report())? + "\n"
    } else {
        plan.to_string()
    };
    print(&text)?;
    Ok(plan.check()?)
}

async fn up(args: &UpArgs) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
    let rules = settings.rules.len();
    let Some(host) = transaction::up(settings, args.care.into()).await? else {
        return Ok(());
    };
    eprintln!("redirecting by {rules} rules; `portredir down` ends it");
    if args.care.confirm.is_some() {
        eprintln!("type `portredir confirm` to keep this, else it is taken back");
    }
    if !args.follow {
        drop(host);
        return transaction::start_follower();
    }
    transaction::stop_follower(true);
    let check = || args.options.settings().map(drop);
    event_loop::follow_with(host, check).await
}

async fn add(args: &ChangeArgs) -> anyhow::Result<()> {
    let new = rule::from_words(&args.rules)?;
    transaction::change(args.care.into(), |now| {
        let mut rules: Vec<_> = now.rules.iter().cloned().map(Sourced::running).collect();
        for sourced in new {
            if now.rules.contains(&sourced.rule) {
                eprintln!("{} is there already", sourced.rule);
            } else {
                rules.push(sourced);
            }
        }
        shadow::check(&rules)?;
        Ok(Settings {
            rules: rules.into_iter().map(|sourced| sourced.rule).collect(),
            ..now.clone()
        })
    })
    .await
}

async fn rm(args: &ChangeArgs) -> anyhow::Result<()> {
    let old = rule::from_words(&args.rules)?;
    transaction::change(args.care.into(), |now| {
        let mut settings = now.clone();
        for Sourced { rule, .. } in old {
            if settings.rules.contains(&rule) {
                settings.rules.retain(|other| *other != rule);
            } else {
                let is_near = |other: &&Rule| other.dialled == rule.dialled;
                let near = now.rules.iter().find(is_near);
                let near = near.map_or_else(String::new, |near| format!("; there is {near}"));
                eprintln!("there is no rule {rule}{near}");
            }
        }
        Ok(settings)
    })
    .await
}

async fn save(args: &SaveArgs) -> anyhow::Result<()> {
    let settings = transaction::read().await?.settings;
    if args.dry_run {
        return print(&file::to_toml(&settings));
    }
    file::save(&args.file, &settings)?;
    eprintln!(
        "{} rules are in {}",
        settings.rules.len(),
        args.file.display()
    );
    Ok(())
}

fn rules(answer: &Answer, is_json: bool) -> anyhow::Result<()> {
    let rules = &answer.settings.rules;
    if is_json {
        let json = serde_json::json!({ "schema": 1, "rules": rules });
        return print(&format!("{json}\n"));
    }
    let lines: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
    print(&lines)
}

fn status(answer: &Answer, is_json: bool) -> anyhow::Result<()> {
    if is_json {
        return print(&(serde_json::to_string(answer)? + "\n"));
    }
    let who = match answer.role {
        Some(Role::Foreground) => format!("in the foreground, process {}", answer.pid),
        Some(Role::Follower) => format!("left attached, followed by process {}", answer.pid),
        None => "left attached, but nobody follows interfaces and addresses: portredir follow"
            .to_owned(),
    };
    let mut text = format!("portredir {}, {who}\n", answer.version);
    if let Some(seconds) = answer.confirm_within {
        text +=
            &format!("the last change is taken back in {seconds} s unless: portredir confirm\n");
    }
    for interface in &answer.report.interfaces {
        text += &format!(
            "{:<15} {:<7} {:<14} {}\n",
            interface.name, interface.engine, interface.mode, interface.why
        );
    }
    for line in answer.report.summary() {
        text += &(line + "\n");
    }
    print(&text)
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("print")
}
