//! `portredir bench`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::config::engine::EngineChoice;

/// The port that servers listen on.
pub const TARGET_PORT: u16 = 8080;

/// What a user can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Suite {
    /// TCP requests and responses of one byte on one connection.
    Rr,
    /// TCP connections with a request and a response of one byte.
    Crr,
    /// UDP packets of one flow.
    Udp,
    /// UDP packets of which each begins a flow.
    UdpNew,
    /// TCP with much data, in both directions.
    Bulk,
    /// The programs alone, on one packet (`BPF_PROG_TEST_RUN`).
    ProgRun,
    /// Loading 10 000 rules, and changing one of them.
    Load,
    /// Memory of programs and tables.
    Memory,
}

/// Somebody else's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opponent {
    /// Nobody.
    None,
    /// `REDIRECT` of the iptables that has its own part of the kernel.
    IptablesLegacy,
    /// `REDIRECT` of the iptables that writes nftables rules.
    IptablesNft,
    /// nftables `redirect`, with the ports in a map.
    NftMap,
    /// nftables that rewrites ports without connection tracking.
    NftStateless,
    /// nginx with its stream module, one worker.
    Nginx,
    /// `HAProxy` in TCP mode, one thread.
    Haproxy,
    /// socat, which makes a process for each connection.
    Socat,
}

/// `portredir bench`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    /// The other end of a benchmark.
    #[command(subcommand)]
    pub role: Option<BenchRole>,

    /// What is soon known: a quarter of a minute, the common case only. The default.
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,

    /// Everything, five minutes.
    #[arg(long)]
    pub full: bool,

    /// Compare with these alone; `none` is without.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub against: Option<Vec<Opponent>>,

    /// Measure these engines.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "LIST",
        hide_possible_values = true
    )]
    pub engine: Option<Vec<EngineChoice>>,

    /// How many rules there are, of which the last is the one that matters.
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub rules: Option<Vec<u16>>,

    /// Run these tests alone.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub tests: Option<Vec<Suite>>,

    /// Use a server on another machine, where `portredir bench serve` runs.
    #[arg(long, value_name = "ADDR", requires = "dial")]
    pub remote: Option<Ipv4Addr>,

    /// With --remote: names for the ports of the server that lead to 8080.
    #[arg(long, value_delimiter = ',', value_name = "NAME=PORT", value_parser = dial, requires = "remote")]
    pub dial: Vec<(String, u16)>,

    /// Write the report as JSON as well.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the report as a page with plots as well.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Write the report as Markdown as well.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// Send UDP from a raw socket, as on kernels that cannot send by themselves.
    #[arg(long, hide = true)]
    pub raw_socket: bool,

    /// Take turns in the order of this seed; without it, one is chosen and shown.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// What a benchmark is made of.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum BenchRole {
    /// Answer the benchmark of another machine, until Ctrl-C.
    Serve {
        /// The port, TCP and UDP.
        #[arg(long, default_value_t = TARGET_PORT)]
        port: u16,
    },
    /// Be the client; `bench` starts it and tells it what to do.
    #[command(hide = true)]
    Load,
    /// Run programs on packets; `bench` starts it.
    #[command(hide = true)]
    ProgRun {
        /// Rounds, in each of which every packet has a turn.
        rounds: u32,
    },
}

fn dial(text: &str) -> Result<(String, u16), &'static str> {
    let (name, port) = text
        .split_once('=')
        .ok_or("no NAME=PORT, as portredir=80 is one")?;
    let port = port.parse().map_err(|_| "not a port")?;
    if name.is_empty() || port == 0 {
        return Err("no NAME=PORT, as portredir=80 is one");
    }
    Ok((name.to_owned(), port))
}
