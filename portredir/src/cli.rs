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

/// Redirects ports in the kernel.
///
/// Whoever dials the first port of a rule on this host reaches what listens on
/// the second, and is answered from the first. Client and dialled address stay
/// as they are.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "Example: sudo portredir --iface all 80:8080 53:5353/udp")]
pub struct Cli {
    /// What to do; without it, redirect until Ctrl-C.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// For the run in the foreground.
    #[command(flatten)]
    pub run: Run,

    /// Say more, also what happens to every packet of a rule.
    ///
    /// `RUST_LOG` overrides it.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show what would be attached where, and why; attach nothing.
    ///
    /// Needs no privileges. Exit code 1 means that the engine that was asked
    /// for is impossible on an interface.
    #[command(after_help = "Example: portredir plan --iface 'all,!docker0' 80:8080")]
    Plan(PlanArgs),

    /// Redirect, and leave it so when this command ends.
    ///
    /// What runs already is changed to what is asked for, and its programs are
    /// replaced by those of this version; no packet is lost. Without rules those
    /// of /etc/portredir are taken.
    #[command(after_help = "Example: sudo portredir up --iface all 80:8080 443:8443/both")]
    Up(UpArgs),

    /// End it: wait for redirected connections, detach, put everything back.
    Down(DownArgs),

    /// Add rules to what runs.
    #[command(after_help = "Example: sudo portredir add 81:8081 from 10.0.0.0/8")]
    Add(ChangeArgs),

    /// Remove rules from what runs. Their connections go on.
    #[command(after_help = "Example: sudo portredir rm 81:8081")]
    Rm(ChangeArgs),

    /// Make the rules of a file those that run, in one step.
    #[command(after_help = "Example: sudo portredir apply -f rules.toml --confirm 30s")]
    Apply(ApplyArgs),

    /// Keep the last change, which was made with --confirm.
    Confirm,

    /// Write what runs to a file, for the next start.
    Save(SaveArgs),

    /// Check a file or directory of rules; needs no privileges.
    Check(CheckArgs),

    /// Show the rules that run, as they can be typed.
    Rules(ReadArgs),

    /// Show what runs, with interfaces and counters.
    ///
    /// Exit code 3 means that nothing runs.
    Status(ReadArgs),

    /// Measure this host: redirecting by portredir, by others, and not at all.
    ///
    /// In network namespaces of its own, which are gone at the end; needs root.
    /// Interfaces, rules and traffic of the host are not touched, but one of its
    /// processors is kept busy.
    #[command(after_help = "Example: sudo portredir bench --full --html report.html")]
    Bench(BenchArgs),

    /// Keep what `up` left in step with interfaces and addresses.
    ///
    /// `up` starts it, and `status` says when it is missing.
    #[command(hide = true, alias = "follow")]
    Watch,
}

/// What every change can be asked for.
#[derive(Args, Clone, Copy, Debug)]
pub struct ChangeOptionArgs {
    /// Also do what may lock you out: take over SSH, DHCP, the Kubernetes API.
    #[arg(long)]
    pub force: bool,

    /// Take the change back unless `portredir confirm` comes in time, as in 30s.
    #[arg(long, value_name = "TIME", value_parser = confirm)]
    pub confirm: Option<Duration>,

    /// Only show what would change.
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
    /// What to redirect, and where.
    #[command(flatten)]
    pub options: SettingsArgs,

    /// How careful to be.
    #[command(flatten)]
    pub change: ChangeOptionArgs,

    /// Stay, and follow interfaces and addresses from here: for systemd.
    ///
    /// SIGHUP reads the files again; when this ends, the rest stays.
    #[arg(long = "follow", alias = "watch", conflicts_with = "dry_run")]
    pub watch: bool,
}

/// `portredir down`.
#[derive(Args, Clone, Copy, Debug)]
pub struct DownArgs {
    /// How long to wait for connections whose packets are rewritten, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = value::drain_timeout)]
    pub drain_timeout: Option<Duration>,

    /// Do not wait for anything, and trust nothing that is there: for what is
    /// damaged.
    #[arg(long)]
    pub force: bool,

    /// Only show what would change.
    #[arg(long)]
    pub dry_run: bool,
}

/// `portredir add` and `portredir rm`.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
    /// The rules.
    #[arg(required = true, value_name = "RULE")]
    pub rules: Vec<String>,

    /// How careful to be.
    #[command(flatten)]
    pub change: ChangeOptionArgs,
}

/// `portredir apply`.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// A file, or a directory like /etc/portredir.
    #[arg(short, long, value_name = "PATH")]
    pub file: PathBuf,

    /// How careful to be.
    #[command(flatten)]
    pub change: ChangeOptionArgs,
}

/// `portredir save`.
#[derive(Args, Clone, Debug)]
pub struct SaveArgs {
    /// The file.
    #[arg(value_name = "PATH", default_value = "/etc/portredir/rules.toml")]
    pub file: PathBuf,

    /// Only show what would be written.
    #[arg(long)]
    pub dry_run: bool,
}

/// `portredir check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// A file, or a directory like /etc/portredir.
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

/// Redirect until Ctrl-C or SIGTERM.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("rules", |rules| rules.required_unless_present("config")))]
pub struct Run {
    /// What to redirect, and where.
    #[command(flatten)]
    pub options: SettingsArgs,

    /// How often to print the counters that changed, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: Duration,

    /// Print counters as one JSON object per interval and one at the end.
    #[arg(long)]
    pub json: bool,

    /// Allow rules for SSH, DHCP and Kubernetes API ports.
    #[arg(long)]
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
    /// What to redirect, and where.
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

    /// Rules and options of a file, or of a directory like /etc/portredir.
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
    // Not a comment for both: rustdoc takes what is in brackets for links.
    #[arg(
        value_name = "RULE",
        value_parser = word,
        help = "[ADDR:]PORT:PORT[/tcp|/udp|/both] [from CIDR] [on IFACE,…], dialled port first",
        long_help = "[ADDR:]PORT:PORT[/tcp|/udp|/both] [from CIDR] [on IFACE,…], dialled port \
                     first.\n\nPorts may be ranges, as in 8000-8100:9000-9100"
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

/// Behind an option a command is taken for a rule, so say what it is.
fn word(text: &str) -> Result<String, String> {
    if Command::has_subcommand(text) {
        return Err(format!(
            "`{text}` is a command, and options come after it: portredir {text} [OPTIONS] <RULE>..."
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
