//! The command line.

#[cfg(feature = "agent")]
mod agent;
mod bench;
mod change;
mod documents;
mod mistake;
mod read;
pub mod version;

use std::path::PathBuf;
use std::time::Duration;

#[cfg(feature = "agent")]
pub use agent::AgentArgs;
pub use bench::{BenchArgs, BenchRole, Opponent, Suite, TARGET_PORT, Topology};
pub use change::{ChangeArgs, ChangeOptionArgs, ReplaceArgs, RmArgs, TurnArgs};
use clap::{Arg, Args, Parser, Subcommand};

use documents::COMPLETIONS_HELP;
pub use documents::{CompletionsArgs, FeaturesArgs, ManArgs, Shell};
pub use mistake::{Mistake, parse};
pub use read::{
    CheckArgs, ConnectionsArgs, DiffArgs, ExplainArgs, ImportArgs, MetricsArgs, ReadArgs,
    StatusArgs, TableArgs, TopArgs, TraceArgs,
};
use read::{EXPLAIN_HELP, interval};

use crate::config::options::{self, Typed};
use crate::config::safety::ChangeOptions;
use crate::config::value::DrainTimeout;

/// The parts of the help: those of clap, with an empty line less.
const TEMPLATE: &str = "{about-with-newline}{usage-heading} {usage}\n\n{all-args}{after-help}";

/// The end of the help, with the argument that the short help has no room for.
const AFTER_HELP: &str = "\
A RULE is [ADDR:]PORT:TARGET[/tcp|/udp|/both] [from CIDR] [on IFACE,…], as in 80:8080 53:5353/udp
More: --help, help COMMAND, confirm, import, bench, metrics, version, features, man, completions";

/// Redirect ports of this host in the kernel.
///
/// Connections to the destination port of a rule are delivered to the process that
/// listens on the target port, and replies come from the destination port. The server
/// sees the client's address and port, and the address that the client connected to.
#[derive(Clone, Debug, Parser)]
#[command(version, long_version = version::LONG.as_str())]
#[command(max_term_width = 100, arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true, disable_version_flag = true)]
#[command(disable_help_flag = true)]
#[command(override_usage = "portredir [OPTIONS] RULE... | portredir COMMAND")]
#[command(help_template = TEMPLATE, after_help = AFTER_HELP)]
pub struct Cli {
    /// The command; without one, redirect until Ctrl-C.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The foreground run.
    #[command(flatten)]
    pub run: Run,

    /// Verbose: also log what becomes of packets, as `portredir trace` shows.
    ///
    /// `RUST_LOG` overrides this option.
    #[arg(short, long, action = clap::ArgAction::Count, global = true, hide_short_help = true)]
    pub verbose: u8,

    /// Quiet: print no messages on standard error but errors and the log.
    #[arg(short, long, global = true, hide_short_help = true)]
    pub quiet: bool,

    /// Print help; -h prints less.
    #[arg(short, long, action = clap::ArgAction::Help, global = true, hide_short_help = true)]
    pub help: Option<bool>,

    /// Print version.
    #[arg(short = 'V', long, action = clap::ArgAction::Version, hide_short_help = true)]
    pub version: Option<bool>,
}

impl Cli {
    /// Whether the process stays, to keep a redirect in step with its host.
    #[must_use]
    pub const fn is_staying(&self) -> bool {
        match &self.command {
            None | Some(Command::Watch) => true,
            Some(Command::Up(args)) => args.watch,
            #[cfg(feature = "agent")]
            Some(Command::Agent(_)) => true,
            Some(_) => false,
        }
    }
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show where programs would be attached, and why; attach nothing.
    ///
    /// Needs no privileges. Exit code 1 means that the requested engine is not
    /// available on an interface.
    #[command(after_help = "Example: portredir plan --iface 'all,!docker0' 80:8080")]
    Plan(PlanArgs),

    /// Start redirecting and keep it after this command exits.
    ///
    /// If portredir is already running, the given rules and options replace the running
    /// ones, and the eBPF programs of this version replace the attached ones; no packet is
    /// lost. Without RULE, the rules are read from /etc/portredir. Running rules that would go
    /// are named, and need --replace.
    #[command(after_help = "Example: sudo portredir up --iface all 80:8080 443:8443/both")]
    Up(UpArgs),

    /// Stop: drain connections, detach all programs, restore settings.
    #[command(alias = "stop")]
    Down(DownArgs),

    /// Add rules to the running rules.
    #[command(after_help = "Example: sudo portredir add 81:8081 from 10.0.0.0/8")]
    Add(ChangeArgs),

    /// Remove running rules; established connections continue.
    ///
    /// If one of the rules does not run, nothing is removed, and the exit code is 1.
    #[command(
        aliases = ["del", "delete", "remove"],
        after_help = "Example: sudo portredir rm 81:8081"
    )]
    Rm(RmArgs),

    /// Replace a running rule with another one, without a gap.
    ///
    /// Every packet meets the old rule or the new one. Established connections continue.
    #[command(after_help = "Example: sudo portredir replace 80:8080 80:9090")]
    Replace(ReplaceArgs),

    /// Atomically replace the running rules with those in a file.
    ///
    /// Without --file, the rules are read from /etc/portredir; `reload` is another name for
    /// that.
    #[command(
        alias = "reload",
        after_help = "Example: sudo portredir apply -f rules.toml --confirm 30s"
    )]
    Apply(ApplyArgs),

    /// Let new connections begin at other targets; `undrain` ends that.
    ///
    /// Established connections continue, and UDP flows stay, too. TARGET is an address, an address with a port, or a port of this host. `targets` shows
    /// when the connections of the target have ended.
    #[command(after_help = "Example: sudo portredir drain 10.0.0.5:8080")]
    Drain(TurnArgs),

    /// Let new connections begin at a drained target again.
    #[command(
        hide = true,
        after_help = "Example: sudo portredir undrain 10.0.0.5:8080"
    )]
    Undrain(TurnArgs),

    /// Keep the last change made with --confirm.
    #[command(hide = true)]
    Confirm,

    /// Write the running configuration to a file for the next start.
    Save(SaveArgs),

    /// Check a configuration file or directory; needs no privileges.
    Check(CheckArgs),

    /// Compare the running rules and options with a file: exit code 0, or 1 if they differ.
    ///
    /// Prints what `up` would change with this file: `-` for what runs, `+` for what the file
    /// has. `apply` would change the rules alone. Exit code 2 means that they cannot be
    /// compared, and 3 that nothing runs.
    #[command(after_help = "Example: portredir diff && echo saved")]
    Diff(DiffArgs),

    /// Print the redirects of iptables, nft, firewalld or docker as rules.
    ///
    /// Reads what iptables-save, ip6tables-save, `nft -j list ruleset`, `firewall-cmd --list-all`
    /// or `docker inspect` prints, or the file of a zone of firewalld. Standard error has each
    /// line that cannot be taken over, with the reason; the exit code is then 1. Needs no
    /// privileges, and changes nothing.
    #[command(
        hide = true,
        after_help = "Example: sudo iptables-save | portredir import - --toml > rules.toml"
    )]
    Import(ImportArgs),

    /// Print the running rules in the syntax of the command line.
    #[command(aliases = ["list", "ls"])]
    Rules(ReadArgs),

    /// Show targets with an address, or several of a rule: up, drained or down; needs root.
    ///
    /// FLOWS are the live connections and UDP flows of a target. Below a target that is down
    /// stands the last failure of its health check.
    #[command(after_help = "Example: sudo portredir targets --json")]
    Targets(ReadArgs),

    /// Show the running configuration, interfaces and counters.
    ///
    /// Exit code 3 means that portredir is not running. With --check, 0 means that all is
    /// well, and 5 that something is wrong.
    #[command(
        alias = "show",
        after_help = "Example: portredir status --check || systemctl reload portredir"
    )]
    Status(StatusArgs),

    /// Show what becomes of packets, as they come: a line for each packet.
    ///
    /// Packets to and from the ports of rules are shown, also those that no rule redirects
    /// because of `from`, `on` or the address. Without a filter all of them; each filter
    /// leaves fewer: RULE, tcp, udp, drops, port N, from ADDR[/LEN], on IFACE. At most 5000
    /// packets per second and processor are written, before filters; what is left out is
    /// counted. Needs root; one process can trace at a time.
    #[command(after_help = "Example: sudo portredir trace 80:8080 from 192.0.2.0/24 --count 10")]
    Trace(TraceArgs),

    /// List live redirected connections and UDP flows; needs root.
    ///
    /// Each FILTER narrows the list: `state STATE` (as ss names it, or `all`), `port PORT`
    /// (destination or target port), `from CIDR` (clients), `rule RULE`. A filter that is
    /// repeated has alternatives. Without `state`, all states but time-wait are listed. UDP
    /// of local clients, and connections to other hosts or containers, cannot be listed.
    #[command(
        alias = "flows",
        after_help = "Example: sudo portredir connections port 80 from 192.0.2.0/24"
    )]
    Connections(ConnectionsArgs),

    /// Print metrics for Prometheus once.
    ///
    /// For the textfile collector of node_exporter: run it every minute with --output. Exit
    /// code 3 means that portredir is not running; the metrics say so, too. To serve
    /// metrics over HTTP, use `portredir up --metrics ADDR:PORT`.
    #[command(
        hide = true,
        after_help = "Example: portredir metrics --output /var/lib/node_exporter/portredir.prom"
    )]
    Metrics(MetricsArgs),

    /// Watch rates, flows and drops live, on the whole terminal.
    ///
    /// Keys: `q` quit, `s` sort, `r` reverse, `/` filter, `p` pause, `i` rows for each
    /// interface, `e` log, arrows and page keys scroll.
    #[command(after_help = "Example: portredir top --interval 5s")]
    Top(TopArgs),

    /// Find everything that stands between clients and servers, and how to mend it.
    ///
    /// Examines the running configuration, or the rules that are given, or those in
    /// /etc/portredir; changes nothing. Exit code 5 means that there are findings.
    #[command(after_help = "Example: sudo portredir doctor")]
    Doctor(DoctorArgs),

    /// Show which rule takes a flow, why others do not, and what becomes of its packet.
    ///
    /// A copy of the program runs on the first packet of the flow, over the running rules;
    /// nothing is changed and nothing is counted. With `-`, flows are read from standard
    /// input, one a line. A line that tcpdump -n prints is a flow, too. Needs root.
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),

    /// Redirect what the PortRedirects of a Kubernetes cluster say, on one of its nodes.
    ///
    /// Runs in a pod of a DaemonSet with the network of the node. The redirect stays when
    /// the agent ends; `portredir down` on the node ends it.
    #[cfg(feature = "agent")]
    #[command(
        hide = true,
        after_help = "Example: portredir agent --print-crds | kubectl apply -f -"
    )]
    Agent(Box<AgentArgs>),

    /// Benchmark portredir, other redirectors and no redirect on this host.
    ///
    /// Runs in its own network namespaces, which are removed at the end; needs root.
    /// Interfaces, rules and traffic of the host are not touched, but one CPU is kept
    /// busy.
    #[command(
        hide = true,
        after_help = "Example: sudo portredir bench --full --html report.html"
    )]
    Bench(BenchArgs),

    /// Show this build, and the features of this kernel that engines need.
    #[command(hide = true, after_help = "Example: portredir features --json")]
    Features(FeaturesArgs),

    /// Print the completions of a shell, which know the running rules and the interfaces.
    ///
    /// Packages install them. Without a package, write them where the shell looks.
    #[command(hide = true, after_help = COMPLETIONS_HELP)]
    Completions(CompletionsArgs),

    /// Print a man page, or write all of them to a directory.
    #[command(hide = true, after_help = "Example: portredir man status | man -l -")]
    Man(ManArgs),

    /// Run the watcher process: track interfaces and addresses after `up`.
    ///
    /// `up` starts the watcher; `status` reports when it is missing.
    #[command(hide = true, alias = "follow")]
    Watch,
}

/// `portredir up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// The settings of the redirect.
    #[command(flatten)]
    pub options: Typed,

    /// The options of every change.
    #[command(flatten)]
    pub change: ChangeOptionArgs,

    /// Remove running rules that are not given again.
    ///
    /// Without this option, `up` names such rules and changes nothing; to keep them, use `add`.
    #[arg(long)]
    pub replace: bool,

    /// Stay in the foreground as the watcher process; for systemd units. Implies --replace.
    ///
    /// SIGHUP reloads the configuration files. When this process ends, the programs stay
    /// attached.
    #[arg(long = "follow", alias = "watch", conflicts_with = "dry_run")]
    pub watch: bool,

    /// Leave the watcher process as it is, also one of another version; for the reload of
    /// systemd units, which replace it themselves. Implies --replace.
    #[arg(long, hide = true, conflicts_with = "watch")]
    pub keep_watcher: bool,
}

impl UpArgs {
    /// Whether running rules may go: those who ask for the configuration of a service mean all
    /// of it.
    #[must_use]
    pub const fn replaces(&self) -> bool {
        self.replace || self.watch || self.keep_watcher
    }
}

/// `portredir down`.
#[derive(Args, Clone, Copy, Debug)]
pub struct DownArgs {
    /// How long to wait for redirected connections to end, for example 10s.
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<DrainTimeout>,

    /// Remove everything without draining, even if the state is corrupt.
    #[arg(long)]
    pub force: bool,

    /// Show what would change; change nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// `portredir apply`.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// A file, or a directory with the layout of /etc/portredir; `-` is standard input.
    #[arg(
        short,
        long,
        value_name = "PATH",
        default_value = "/etc/portredir",
        env = "PORTREDIR_CONFIG",
        hide_env = true
    )]
    pub file: PathBuf,

    /// The options of every change.
    #[command(flatten)]
    pub change: ChangeOptionArgs,
}

/// `portredir save`.
#[derive(Args, Clone, Debug)]
pub struct SaveArgs {
    /// The file to write, or a directory with the layout of /etc/portredir; `-` prints.
    ///
    /// Without PATH, PORTREDIR_CONFIG names the file. A file that a person wrote is kept
    /// as PATH~.
    #[arg(
        value_name = "PATH",
        default_value = "/etc/portredir/rules.toml",
        env = "PORTREDIR_CONFIG",
        hide_env = true
    )]
    pub file: PathBuf,

    /// Print what would be written; write nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// `portredir doctor`.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("words", |words| words.value_parser(word)))]
pub struct DoctorArgs {
    /// The settings of a redirect that is examined before it runs.
    #[command(flatten)]
    pub options: Typed,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Redirect until Ctrl-C or SIGTERM.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("words", |words| rules_or_config(words).hide_short_help(true)))]
#[command(mut_arg("no_header", |no_header| no_header.hide_short_help(true)))]
pub struct Run {
    /// The settings of the redirect.
    #[command(flatten)]
    pub options: Typed,

    /// How often to print changed counters [default: 2s; 1s for the live view].
    #[arg(long, value_name = "TIME", value_parser = interval)]
    pub interval: Option<Duration>,

    /// Print lines also on a terminal, where the live view is shown otherwise.
    #[arg(long, conflicts_with = "json", hide_short_help = true)]
    pub plain: bool,

    /// Print counters as one JSON object per interval and one at the end.
    #[arg(long)]
    pub json: bool,

    /// The options of every command that prints a table.
    #[command(flatten)]
    pub table: TableArgs,

    /// Allow rules for SSH, DHCP and Kubernetes API ports, and for the port of your SSH
    /// session.
    #[arg(long, hide_short_help = true)]
    pub force: bool,
}

impl Run {
    /// The options of the change with which the run begins.
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
#[command(mut_arg("words", rules_or_config))]
pub struct PlanArgs {
    /// The settings of the redirect.
    #[command(flatten)]
    pub options: Typed,

    /// Print the plan as one JSON object.
    #[arg(long)]
    pub json: bool,

    /// The options of every command that prints a table.
    #[command(flatten)]
    pub table: TableArgs,
}

/// Rules are required unless a file is named, here or in the environment.
fn rules_or_config(words: Arg) -> Arg {
    let words = words.value_parser(word);
    match options::named_by_environment() {
        Some(_) => words,
        None => words.required_unless_present("config"),
    }
}

/// Refuses a command after an option, where clap would take it for a rule. `check` is also a
/// word of rules, and is refused as such where no rule is before it.
fn word(text: &str) -> Result<String, String> {
    if Command::has_subcommand(text) && text != "check" {
        return Err(format!(
            "`{text}` is a command; options go after the command: portredir {text} [OPTIONS]"
        ));
    }
    Ok(text.to_owned())
}
