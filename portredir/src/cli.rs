//! The command line.

mod bench;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use bench::{BenchArgs, BenchRole, Opponent, Suite, TARGET_PORT};
use clap::{Args, Parser, Subcommand};

use crate::config::file::{self, ConfigError};
use crate::config::options::Options;
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::config::value;
use crate::rule;
use crate::ruleset::shadow;

/// Redirect ports of this host in the kernel.
///
/// Connections to the destination port of a rule are delivered to the process that listens
/// on the target port, and replies come from the destination port. The server sees the
/// client's address and port, and the address that the client connected to.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "Example: sudo portredir --iface all 80:8080 53:5353/udp")]
pub struct Cli {
    /// The command; without one, redirect until Ctrl-C.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The arguments of the run in the foreground.
    #[command(flatten)]
    pub run: Run,

    /// Verbose: also log every redirected packet and every reply.
    ///
    /// `RUST_LOG` overrides this option.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show where programs would be attached, and why; attach nothing.
    ///
    /// Needs no privileges. Exit code 1 means that the requested engine is not available on
    /// an interface.
    #[command(after_help = "Example: portredir plan --iface 'all,!docker0' 80:8080")]
    Plan(PlanArgs),

    /// Start redirecting and keep it after this command exits.
    ///
    /// If portredir is already running, the given rules and options replace the running
    /// ones, and the programs of this version replace the attached ones; no packet is lost.
    /// Without RULE, the rules are read from /etc/portredir.
    #[command(after_help = "Example: sudo portredir up --iface all 80:8080 443:8443/both")]
    Up(UpArgs),

    /// Stop: drain connections, detach all programs, restore settings.
    Down(DownArgs),

    /// Add rules to the running rules.
    #[command(after_help = "Example: sudo portredir add 81:8081 from 10.0.0.0/8")]
    Add(ChangeArgs),

    /// Remove running rules; established connections continue.
    #[command(after_help = "Example: sudo portredir rm 81:8081")]
    Rm(ChangeArgs),

    /// Atomically replace the running rules with those in a file.
    #[command(after_help = "Example: sudo portredir apply -f rules.toml --confirm 30s")]
    Apply(ApplyArgs),

    /// Keep the last change made with --confirm.
    Confirm,

    /// Write the running configuration to a file for the next start.
    Save(SaveArgs),

    /// Check a configuration file or directory; needs no privileges.
    Check(CheckArgs),

    /// Print the running rules in the syntax of the command line.
    Rules(ReadArgs),

    /// Show the running configuration, interfaces and counters.
    ///
    /// Exit code 3 means that portredir is not running.
    Status(ReadArgs),

    /// Benchmark portredir, other redirectors and no redirect on this host.
    ///
    /// Runs in its own network namespaces, which are removed at the end; needs root.
    /// Interfaces, rules and traffic of the host are not touched, but one CPU is kept busy.
    #[command(after_help = "Example: sudo portredir bench --full --html report.html")]
    Bench(BenchArgs),

    /// Run the watcher process: track interfaces and addresses after `up`.
    ///
    /// `up` starts the watcher; `status` reports when it is missing.
    #[command(hide = true, alias = "follow")]
    Watch,
}

/// The options of every change.
#[derive(Args, Clone, Copy, Debug)]
pub struct ChangeOptionArgs {
    /// Allow rules for SSH, DHCP and Kubernetes API ports, and for the port of your SSH
    /// session.
    #[arg(long)]
    pub force: bool,

    /// Roll back automatically unless `portredir confirm` follows within TIME, for example
    /// 30s.
    #[arg(long, value_name = "TIME", value_parser = confirm)]
    pub confirm: Option<Duration>,

    /// Show what would change; change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

impl From<ChangeOptionArgs> for ChangeOptions {
    fn from(args: ChangeOptionArgs) -> Self {
        let ChangeOptionArgs {
            force,
            confirm,
            dry_run,
        } = args;
        Self {
            force,
            confirm,
            dry_run,
        }
    }
}

/// `portredir up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// The settings.
    #[command(flatten)]
    pub options: SettingsArgs,

    /// The options of the change.
    #[command(flatten)]
    pub change: ChangeOptionArgs,

    /// Stay in the foreground as the watcher process; for systemd units.
    ///
    /// SIGHUP reloads the configuration files. When this process ends, the programs stay
    /// attached.
    #[arg(long = "follow", alias = "watch", conflicts_with = "dry_run")]
    pub watch: bool,
}

/// `portredir down`.
#[derive(Args, Clone, Copy, Debug)]
pub struct DownArgs {
    /// How long to wait for redirected connections to end, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = value::drain_timeout)]
    pub drain_timeout: Option<Duration>,

    /// Remove everything without draining, even if the state is corrupt.
    #[arg(long)]
    pub force: bool,

    /// Show what would change; change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// `portredir add` and `portredir rm`.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
    /// The rules, in the syntax that `portredir rules` prints.
    #[arg(required = true, value_name = "RULE")]
    pub rules: Vec<String>,

    /// The options of the change.
    #[command(flatten)]
    pub change: ChangeOptionArgs,
}

/// `portredir apply`.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// A file, or a directory with the layout of /etc/portredir.
    #[arg(short, long, value_name = "PATH")]
    pub file: PathBuf,

    /// The options of the change.
    #[command(flatten)]
    pub change: ChangeOptionArgs,
}

/// `portredir save`.
#[derive(Args, Clone, Debug)]
pub struct SaveArgs {
    /// The file to write.
    #[arg(value_name = "PATH", default_value = "/etc/portredir/rules.toml")]
    pub file: PathBuf,

    /// Print what would be written; write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// `portredir check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// A file, or a directory with the layout of /etc/portredir.
    #[arg(
        value_name = "PATH",
        default_value = "/etc/portredir",
        env = "PORTREDIR_CONFIG",
        hide_env = true
    )]
    pub path: PathBuf,
}

/// `portredir rules` and `portredir status`.
#[derive(Args, Clone, Copy, Debug)]
pub struct ReadArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The run in the foreground, until Ctrl-C or SIGTERM.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("rules", |rules| rules.required_unless_present("config")))]
pub struct Run {
    /// The settings.
    #[command(flatten)]
    pub options: SettingsArgs,

    /// How often to print changed counters, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: Duration,

    /// Print counters as one JSON object per interval and one at the end.
    #[arg(long)]
    pub json: bool,

    /// Allow rules for SSH, DHCP and Kubernetes API ports.
    #[arg(long, hide_short_help = true)]
    pub force: bool,
}

impl Run {
    /// How carefully the run begins.
    #[must_use]
    pub fn change(&self) -> ChangeOptions {
        ChangeOptions {
            force: self.force,
            ..ChangeOptions::default()
        }
    }
}

/// `portredir plan`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("rules", |rules| rules.required_unless_present("config")))]
pub struct PlanArgs {
    /// The settings.
    #[command(flatten)]
    pub options: SettingsArgs,

    /// Print the plan as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Options, and rules of words or files: shared by all commands that make a plan.
#[derive(Args, Clone, Debug)]
pub struct SettingsArgs {
    /// The options.
    #[command(flatten)]
    pub options: Options,

    /// Read rules and options from a file, or from a directory with the layout of
    /// /etc/portredir.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "rules",
        env = "PORTREDIR_CONFIG",
        hide_env = true,
        hide_short_help = true
    )]
    pub config: Option<PathBuf>,

    /// The rules.
    // The texts are no doc comment: rustdoc takes brackets for links.
    #[arg(
        value_name = "RULE",
        value_parser = word,
        help = "[ADDR:]PORT:PORT[/tcp|/udp|/both] [from CIDR] [on IFACE,…]; destination port first",
        long_help = "[ADDR:]PORT:PORT[/tcp|/udp|/both] [from CIDR] [on IFACE,…]; the destination \
                     port comes first, then the target port.\n\nPorts may be ranges, for example \
                     8000-8100:9000-9100"
    )]
    pub rules: Vec<String>,
}

impl SettingsArgs {
    /// Merges the options of the command line and of the environment with those of files
    /// and with the defaults: the earlier ones of these win.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]: a rule or a file is wrong.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let defaults = Settings::default();
        let base = match &self.config {
            Some(path) => file::load(path)?.over(&defaults),
            None if self.rules.is_empty() => file::load(Path::new(file::DIR))?.over(&defaults),
            None => {
                let rules = rule::from_words(&self.rules)?;
                shadow::check(&rules)?;
                Settings {
                    rules: rules.into_iter().map(|sourced| sourced.rule).collect(),
                    ..defaults
                }
            }
        };
        Ok(self.options.clone().over(base))
    }
}

/// Refuses the name of a command: after an option, clap takes it for a rule.
fn word(text: &str) -> Result<String, String> {
    if Command::has_subcommand(text) {
        return Err(format!(
            "`{text}` is a command; options go after the command: portredir {text} [OPTIONS]"
        ));
    }
    Ok(text.to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    value::duration(text, 0.1)
}

fn confirm(text: &str) -> Result<Duration, String> {
    value::duration(text.strip_suffix('s').unwrap_or(text), 1.0)
}
