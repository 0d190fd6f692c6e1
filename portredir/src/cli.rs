//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::facts::is_cgroup2;
use crate::plan::EngineChoice;
use crate::rule::{Rule, RuleError};
use crate::selection::Selection;
use crate::settings::Settings;

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
}

/// Redirect until Ctrl-C or SIGTERM.
#[derive(Args, Clone, Debug)]
pub struct Run {
    /// What to redirect, and where.
    #[command(flatten)]
    pub options: Options,

    /// How often to print the counters that changed, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: Duration,

    /// How long to wait at the end for connections whose packets are rewritten.
    ///
    /// New ones go to the dialled port itself meanwhile. Ctrl-C does not wait.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = drain_timeout)]
    #[arg(hide_short_help = true)]
    pub drain_timeout: Duration,

    /// Print counters as one JSON object per interval and one at the end.
    #[arg(long)]
    pub json: bool,

    /// TCP flows to remember; 120 bytes of kernel memory each.
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = flows())]
    #[arg(hide_short_help = true)]
    pub max_tcp_flows: u32,

    /// UDP flows, and TCP flows without a connection yet, to remember; 120
    /// bytes of kernel memory each, twice.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = flows())]
    #[arg(hide_short_help = true)]
    pub max_udp_flows: u32,
}

/// `portredir plan`.
#[derive(Args, Clone, Debug)]
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
    /// beats a name.
    #[arg(long, value_name = "NAME,…", default_value = "all")]
    pub iface: Selection,

    /// How connections are redirected.
    #[arg(long, value_enum, default_value_t)]
    pub engine: EngineChoice,

    /// Leave clients on this host alone.
    #[arg(long)]
    pub no_local: bool,

    /// With `--engine socket`: also reach servers on 127.0.0.1 or ::1 alone.
    ///
    /// Other hosts can then connect to servers that were meant for this host
    /// alone, if a rule has their port as its target.
    #[arg(long, hide_short_help = true)]
    pub allow_loopback_target: bool,

    /// The cgroup v2 directory whose processes are the clients on this host.
    ///
    /// Without it, that is the root of the hierarchy and so every process.
    #[arg(long, value_name = "PATH", value_parser = cgroup, hide_short_help = true)]
    pub cgroup: Option<PathBuf>,

    /// Redirects: `PORT:PORT[/tcp|/udp|/both]`, dialled port first.
    #[arg(required = true, value_name = "RULE", value_parser = rule)]
    pub rules: Vec<Rule>,
}

/// Behind an option a command is taken for a rule, so say what it is.
fn rule(text: &str) -> Result<Rule, String> {
    if Command::has_subcommand(text) {
        return Err(format!(
            "`{text}` is a command, and options come after it: portredir {text} [OPTIONS] <RULE>..."
        ));
    }
    text.parse().map_err(|error: RuleError| error.to_string())
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
    seconds(text, 0.0)
}

fn seconds(text: &str, least: f64) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds, as 2 or 0.5")?;
    if !(least..=3600.0).contains(&seconds) {
        return Err(format!("from {least} to 3600 seconds are possible"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// LRU maps of the kernel evict early when they are small: they hand out
/// entries in batches of 128 per CPU.
fn flows() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1024..=16_777_216)
}

impl Options {
    /// With the defaults for what was not said.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            iface: self.iface.clone(),
            engine: self.engine,
            no_local: self.no_local,
            allow_loopback_target: self.allow_loopback_target,
            cgroup: self.cgroup.clone(),
            rules: self.rules.clone(),
            ..Settings::default()
        }
    }
}

impl Run {
    /// With the defaults for what was not said.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            max_tcp_flows: self.max_tcp_flows,
            max_udp_flows: self.max_udp_flows,
            drain_timeout: self.drain_timeout,
            ..self.options.settings()
        }
    }
}
