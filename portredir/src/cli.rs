//! The command line.

mod bench;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use bench::{BenchArgs, BenchRole, Opponent, Suite, TARGET_PORT};
use clap::{Args, Parser, Subcommand};

use crate::config::engine::EngineChoice;
use crate::config::file::{self, Partial};
use crate::config::safety::ChangeOptions;
use crate::config::selection::Selection;
use crate::config::settings::{self, Settings};
use crate::rule;
use crate::ruleset::shadow;
use crate::sys::cgroup::is_cgroup2;

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
    pub options: Options,

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
    #[arg(long, value_name = "SECONDS", value_parser = drain_timeout)]
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
    pub options: Options,

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
    pub options: Options,

    /// Print the plan as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to redirect, and where: shared by all commands that make a plan.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Interfaces: `all`, names, globs, exclusions, separated by commas.
    ///
    /// `eth0,wg*` is eth0 and whatever is called wg and something, also when
    /// it appears later. `!docker0` is everything but docker0. An exclusion
    /// beats a name. Without it: all.
    #[arg(long, value_name = "NAME,…", env = "PORTREDIR_IFACE", hide_env = true)]
    pub iface: Option<Selection>,

    /// How: auto, xdp, tc, socket or xdp-generic [default: auto].
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        env = "PORTREDIR_ENGINE",
        hide_env = true
    )]
    pub engine: Option<EngineChoice>,

    /// Leave clients on this host alone.
    #[arg(
        long,
        env = "PORTREDIR_NO_LOCAL",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub no_local: Option<bool>,

    /// Other hosts reach a target by way of its rule alone.
    #[arg(
        long,
        env = "PORTREDIR_HIDE_TARGET",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub hide_target: Option<bool>,

    /// Redirect only while something listens on the target.
    ///
    /// Else the packet goes to the port it was meant for.
    #[arg(
        long,
        env = "PORTREDIR_IF_LISTENING",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub if_listening: Option<bool>,

    /// With `--engine socket`: also reach servers on 127.0.0.1 or ::1 alone.
    ///
    /// Other hosts can then connect to servers that were meant for this host
    /// alone, if a rule has their port as its target.
    #[arg(
        long,
        env = "PORTREDIR_ALLOW_LOOPBACK_TARGET",
        hide_env = true,
        hide_short_help = true
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub allow_loopback_target: Option<bool>,

    /// The cgroup v2 directory whose processes are the clients on this host.
    ///
    /// Without it, that is the root of the hierarchy and so every process.
    #[arg(long, value_name = "PATH", value_parser = cgroup, hide_short_help = true)]
    #[arg(env = "PORTREDIR_CGROUP", hide_env = true)]
    pub cgroup: Option<PathBuf>,

    /// How long to wait at the end for connections whose packets are rewritten.
    ///
    /// New ones go to the dialled port itself meanwhile. Ctrl-C does not wait.
    /// Without it: 10.
    #[arg(long, value_name = "SECONDS", value_parser = drain_timeout, hide_short_help = true)]
    #[arg(env = "PORTREDIR_DRAIN_TIMEOUT", hide_env = true)]
    pub drain_timeout: Option<Duration>,

    /// TCP connections to remember, also those that dial a target themselves; 32
    /// bytes of kernel memory each [default: 262144].
    #[arg(long, value_name = "N", value_parser = flows(), hide_short_help = true)]
    #[arg(env = "PORTREDIR_MAX_TCP_FLOWS", hide_env = true)]
    pub max_tcp_flows: Option<u32>,

    /// UDP flows, and TCP flows without a connection yet, to remember; 32
    /// bytes of kernel memory each, twice [default: 65536].
    #[arg(long, value_name = "N", value_parser = flows(), hide_short_help = true)]
    #[arg(env = "PORTREDIR_MAX_UDP_FLOWS", hide_env = true)]
    pub max_udp_flows: Option<u32>,

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

impl Options {
    /// What is given here, or in the environment, over what files say, over the
    /// defaults.
    ///
    /// # Errors
    ///
    /// What is wrong with rules or files.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let partial = Partial {
            iface: self.iface.clone(),
            engine: self.engine,
            no_local: self.no_local,
            allow_loopback_target: self.allow_loopback_target,
            cgroup: self.cgroup.clone(),
            hide_target: self.hide_target,
            if_listening: self.if_listening,
            max_tcp_flows: self.max_tcp_flows,
            max_udp_flows: self.max_udp_flows,
            drain_timeout: self.drain_timeout,
        };
        let base = match &self.config {
            Some(path) => file::load(path)?.over(&Settings::default()),
            None if self.rules.is_empty() => {
                file::load(Path::new(file::DIR))?.over(&Settings::default())
            }
            None => {
                let rules = rule::from_words(&self.rules)?;
                shadow::check(&rules)?;
                Settings {
                    rules: rules.into_iter().map(|sourced| sourced.rule).collect(),
                    ..Settings::default()
                }
            }
        };
        Ok(partial.over(&base))
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

fn cgroup(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if is_cgroup2(&path) {
        Ok(path)
    } else {
        Err("not a directory of a cgroup v2 hierarchy, as /sys/fs/cgroup/system.slice is one")
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    seconds(text, 0.1)
}

fn drain_timeout(text: &str) -> Result<Duration, String> {
    seconds(text, *settings::DRAIN_SECONDS.start())
}

fn confirm(text: &str) -> Result<Duration, String> {
    seconds(text.strip_suffix('s').unwrap_or(text), 1.0)
}

fn seconds(text: &str, least: f64) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds, as 2 or 0.5")?;
    let most = *settings::DRAIN_SECONDS.end();
    if !(least..=most).contains(&seconds) {
        return Err(format!("from {least} to {most} seconds are possible"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn flows() -> clap::builder::RangedI64ValueParser<u32> {
    let (least, most) = (*settings::FLOWS.start(), *settings::FLOWS.end());
    clap::value_parser!(u32).range(i64::from(least)..=i64::from(most))
}
