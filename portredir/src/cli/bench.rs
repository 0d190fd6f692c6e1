//! `portredir bench`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use portredir_common::net::Port;
use serde::{Deserialize, Serialize};

use crate::config::engine::EngineChoice;

/// The port that servers listen on.
pub const TARGET_PORT: Port = Port::new(8080);

/// A suite of tests that a user can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Suite {
    /// TCP requests and responses of one byte on one connection.
    Rr,
    /// TCP connections with a request and a response of one byte.
    Crr,
    /// UDP packets of one flow.
    Udp,
    /// UDP packets, each of a new flow.
    UdpNew,
    /// Bulk TCP in both directions.
    Bulk,
    /// The programs alone, on one packet (`BPF_PROG_TEST_RUN`).
    ProgRun,
    /// Loading 10 000 rules, and changing one of them.
    Load,
    /// Memory of programs and tables.
    Memory,
}

/// The place of clients and servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// The server is a process of the host that redirects.
    #[default]
    Host,
    /// The server is on another host behind the one that redirects.
    Forward,
    /// The client is a process of the host that redirects, the server is on another host.
    Local,
}

/// Another redirector, to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opponent {
    /// Nothing.
    None,
    /// iptables-legacy `REDIRECT` (the x_tables backend).
    IptablesLegacy,
    /// iptables-nft `REDIRECT` (the nftables backend).
    IptablesNft,
    /// nftables `redirect`, with the ports in a map.
    NftMap,
    /// nftables port rewriting without conntrack.
    NftStateless,
    /// nftables `dnat`, with a flowtable for the packets that follow.
    NftFlowtable,
    /// IPVS with masquerading.
    Ipvs,
    /// nginx with its stream module, one worker.
    Nginx,
    /// `HAProxy` in TCP mode, one thread.
    Haproxy,
    /// socat, one process per connection.
    Socat,
}

/// `portredir bench`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    /// The role; without one, run the benchmark.
    #[command(subcommand)]
    pub role: Option<BenchRole>,

    /// Measure the common case only; takes about 15 seconds. This is the default.
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,

    /// Measure everything; takes about five minutes.
    #[arg(long)]
    pub full: bool,

    /// Compare only with these; `none` compares with nothing.
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

    /// Numbers of rules to test with; only the last rule matches.
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub rules: Option<Vec<u16>>,

    /// Run only these tests.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub tests: Option<Vec<Suite>>,

    /// Where the clients and the servers are.
    #[arg(long, value_enum, default_value = "host", conflicts_with = "remote")]
    pub topology: Topology,

    /// Use the server on another machine, where `portredir bench serve` runs.
    #[arg(long, value_name = "ADDR", requires = "ports")]
    pub remote: Option<Ipv4Addr>,

    /// With --remote: names for the server's ports that are redirected to 8080.
    #[arg(long, alias = "dial", value_delimiter = ',', value_name = "NAME=PORT", value_parser = named_port, requires = "remote")]
    pub ports: Vec<(String, Port)>,

    /// Also write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Also write the report as an HTML page with plots.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Also write the report as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// Send UDP from a raw socket, as on kernels without live frames.
    #[arg(long, hide = true)]
    pub raw_socket: bool,

    /// Seed for the order of the turns; by default a seed is chosen and printed.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// The role of a process in a benchmark.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum BenchRole {
    /// Run the server for a benchmark on another machine, until Ctrl-C.
    Serve {
        /// The port to listen on, TCP and UDP.
        #[arg(long, default_value_t = TARGET_PORT.get())]
        port: u16,
    },
    /// Run the client; started and controlled by `bench`.
    #[command(hide = true)]
    Load,
    /// Check that an address is answered by TCP; started by `bench`.
    #[command(hide = true)]
    Verify {
        /// The address and the port.
        addr: SocketAddrV4,
    },
    /// Run programs on packets; started by `bench`.
    #[command(hide = true)]
    ProgRun {
        /// Rounds; every packet has one turn in each.
        rounds: u32,
    },
}

fn named_port(text: &str) -> Result<(String, Port), &'static str> {
    let (name, port) = text
        .split_once('=')
        .ok_or("expected NAME=PORT, for example portredir=80")?;
    let port = port
        .parse()
        .map_err(|_| "expected a port from 1 to 65535")?;
    if name.is_empty() || port == 0 {
        return Err("expected NAME=PORT, for example portredir=80");
    }
    Ok((name.to_owned(), Port::new(port)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn ports_of_a_remote_server_have_names() {
        // `--dial` is the earlier name of the option.
        for option in ["--ports", "--dial"] {
            let words = [
                "bench",
                "--remote",
                "192.0.2.1",
                option,
                "nginx=80,socat=81",
            ];
            let bench = Command::try_parse_from(words).expect("arguments").bench;
            let expected = [("nginx", 80), ("socat", 81)];
            let expected = expected.map(|(name, port)| (name.to_owned(), Port::new(port)));
            assert_eq!(bench.ports, expected, "{option}");
        }
        for text in ["80", "=80", "nginx=", "nginx=0", "nginx=65536"] {
            named_port(text).expect_err(text);
        }
    }
}
