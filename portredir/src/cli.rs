//! The command line.

use std::time::Duration;

use clap::Parser;

use crate::plan::{EngineChoice, Selection};
use crate::rule::Rule;

/// Redirects ports in the kernel.
///
/// Whoever dials the first port of a rule on this host reaches what listens on
/// the second, and is answered from the first. Client and dialled address stay
/// as they are.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Example: sudo portredir --iface all 80:8080 53:5353/udp")]
pub struct Cli {
    /// Interfaces: names, separated by commas, or `all`.
    #[arg(long, value_name = "NAME,…", default_value = "all", value_parser = selection)]
    pub iface: Selection,

    /// Where packets are rewritten.
    #[arg(long, value_enum, default_value_t)]
    pub engine: EngineChoice,

    /// How often to print the counters that changed, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: Duration,

    /// At the end, wait so long for connections whose packets are rewritten.
    /// New ones go to the dialled port itself meanwhile.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = drain_timeout)]
    pub drain_timeout: Duration,

    /// Print counters as one JSON object per interval and one at the end.
    #[arg(long)]
    pub json: bool,

    /// TCP flows to remember; 120 bytes of kernel memory each.
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = flows())]
    pub max_tcp_flows: u32,

    /// UDP flows, and TCP flows without a connection yet, to remember; 120
    /// bytes of kernel memory each, twice.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = flows())]
    pub max_udp_flows: u32,

    /// Say more, also what happens to every packet of a rule. `RUST_LOG`
    /// overrides it.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Redirects: `PORT:PORT[/tcp|/udp|/both]`, dialled port first.
    #[arg(required = true, value_name = "RULE")]
    pub rules: Vec<Rule>,
}

fn selection(text: &str) -> Result<Selection, String> {
    let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
    if names.iter().any(String::is_empty) {
        return Err("an interface name is empty; write names like eth0,eth1 or `all`".into());
    }
    match names.as_slice() {
        [name] if name == "all" => Ok(Selection::All),
        names if names.iter().any(|name| name == "all") => {
            Err("`all` stands alone; leave the other names out".into())
        }
        _ => Ok(Selection::Names(names)),
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
