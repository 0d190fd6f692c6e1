//! The commands that read, and change nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::value::{self, ValueError};

/// `portredir check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// A file, or a directory with the layout of /etc/portredir; `-` is standard input.
    #[arg(
        value_name = "PATH",
        default_value = "/etc/portredir",
        env = "PORTREDIR_CONFIG",
        hide_env = true
    )]
    pub path: PathBuf,
}

/// `portredir diff`.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// The configuration, as `check` takes it.
    #[command(flatten)]
    pub config: CheckArgs,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `portredir import`.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// The file; `-` is standard input.
    #[arg(value_name = "PATH", default_value = "-")]
    pub path: PathBuf,

    /// Print a configuration file instead of a rule on each line.
    #[arg(long)]
    pub toml: bool,
}

/// `portredir status`.
#[derive(Args, Clone, Copy, Debug)]
pub struct StatusArgs {
    /// The options of every command that reads.
    #[command(flatten)]
    pub read: ReadArgs,

    /// The options of every command that prints a table.
    #[command(flatten)]
    pub table: TableArgs,

    /// Print what is wrong, and how to mend it: a line for each fault.
    #[arg(long)]
    pub check: bool,
}

/// `portredir rules` and `portredir status`.
#[derive(Args, Clone, Copy, Debug)]
pub struct ReadArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Every command that prints a table.
#[derive(Args, Clone, Copy, Debug)]
pub struct TableArgs {
    /// Print no names of columns.
    #[arg(long)]
    pub no_header: bool,
}

/// `portredir trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Filters; a rule with conditions is one word, in quotes.
    #[arg(value_name = "FILTER")]
    pub words: Vec<String>,

    /// End after so many lines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,

    /// Also write the packets to a file for Wireshark (pcapng), as they came and as they
    /// went on.
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
}

/// `portredir connections`.
#[derive(Args, Clone, Debug)]
pub struct ConnectionsArgs {
    /// The flows to list: `state STATE`, `port PORT`, `from CIDR`, `rule RULE`.
    #[arg(value_name = "FILTER")]
    pub filter: Vec<String>,

    /// Print one JSON object; with --watch, one for each list.
    #[arg(long)]
    pub json: bool,

    /// The options of every command that prints a table.
    #[command(flatten)]
    pub table: TableArgs,

    /// Renew the list every TIME (2s without TIME) until Ctrl-C.
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2s",
        value_parser = interval
    )]
    pub watch: Option<Duration>,
}

/// `portredir metrics`.
#[derive(Args, Clone, Debug)]
pub struct MetricsArgs {
    /// Write to a file, in one step, instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `portredir top`.
#[derive(Args, Clone, Copy, Debug)]
pub struct TopArgs {
    /// How often to read the counters.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
}

/// The end of the help of `explain`.
pub(super) const EXPLAIN_HELP: &str = "\
Examples: sudo portredir explain tcp 203.0.113.9 to 10.0.0.5:80 on eth0
          sudo portredir explain udp '[2001:db8::9]:5000' to '[2001:db8::1]:53'
          sudo portredir explain tcp local to 127.0.0.1:80
          tcpdump -n -i eth0 -c 9 | sudo portredir explain -";

/// `portredir explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The flow: PROTOCOL CLIENT to ADDR:PORT [on INTERFACE], or `-` for lines of standard
    /// input.
    ///
    /// CLIENT is an address with or without a port, or `local` for a process of this host.
    /// `->` may stand for `to`, in quotes.
    #[arg(required_unless_present = "pid", value_name = "FLOW")]
    pub flow: Vec<String>,

    /// Explain the sockets of a process: its servers, and the connections of their clients.
    #[arg(long, value_name = "PID", conflicts_with = "flow")]
    pub pid: Option<u32>,

    /// Print one JSON object for each flow.
    #[arg(long)]
    pub json: bool,
}

/// The time between two reports.
///
/// # Errors
///
/// [`ValueError`].
pub(super) fn interval(text: &str) -> Result<Duration, ValueError> {
    value::duration(text, 0.1)
}
