//! Measurements without traffic: the time to load and change rules, and memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::bench::lab;
use crate::bench::lab::alone;
use crate::bench::namespace::{Dir, Namespace};
use crate::bench::process::{Launch, OURSELVES, Process};
use crate::bench::program;
use crate::bench::redirector::{self, INTERFACE};
use crate::bench::report::{Line, Table};
use crate::bench::statistics::median;
use crate::bench::stop::Stop;
use crate::bench::variant::{Subject, Variant};
use crate::cli::Opponent;
use crate::config::engine::EngineChoice;

/// The number of rules that every redirector has to hold.
pub const RULES: u16 = 10_000;

/// The number of times that each command is timed.
const TIMES: usize = 5;

/// Times in milliseconds: to load all rules in the place of one, and to add one more;
/// both include the start of the command.
///
/// # Errors
///
/// When an installed command fails.
pub fn load(dir: &Dir, opponents: &[Opponent], stop: &Stop) -> anyhow::Result<Table> {
    let mut lines = vec![Line {
        name: "nothing (/bin/true)".to_owned(),
        figures: vec![
            None,
            median(times(TIMES, stop, |_| {
                timed(&Host::new(dir, "t")?, &["true"], "")
            })?),
        ],
    }];
    let host = Host::new(dir, "u")?;
    let figures = ours(&host, stop);
    lines.push(Line {
        name: "portredir".to_owned(),
        figures: figures.context("load rules into portredir")?,
    });
    for &opponent in opponents.iter().filter(|opponent| opponent.has_rules()) {
        if opponent.version().is_ok() {
            let host = Host::new(dir, "o")?;
            let figures = theirs(&host, opponent, stop);
            lines.push(Line {
                name: opponent.name(),
                figures: figures.with_context(|| format!("load rules into {}", opponent.name()))?,
            });
        }
    }
    Ok(Table {
        title: "Loading and changing rules, ms",
        note: format!(
            "Medians of {TIMES}, with the start of the command. portredir: `apply -f FILE` in the \
             place of one rule, `add` of one more. iptables: `iptables-restore` into an empty table, \
             `-A`. nft: `nft -f` into an empty table, `add element`. All rules are for TCP and UDP \
             where that makes no list longer, else for TCP."
        ),
        columns: vec!["load 10000 rules", "add one to 10000"],
        lines,
    })
}

/// A host without links to other hosts.
struct Host {
    namespace: Namespace,
    dir: PathBuf,
}

impl Host {
    fn new(dir: &Dir, letter: &str) -> anyhow::Result<Self> {
        Ok(Self {
            namespace: alone(format!("{}-{letter}", dir.name))?,
            dir: dir.inner(letter)?,
        })
    }

    fn launch(&self) -> Launch<'_> {
        Launch {
            namespace: Some(&self.namespace),
            scheduling: None,
            cgroup: None,
            dir: &self.dir,
            is_piped: false,
        }
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path.display().to_string())
    }
}

/// Calls `f` repeatedly with the number of the call; collects milliseconds.
fn times(
    count: usize,
    stop: &Stop,
    mut f: impl FnMut(usize) -> anyhow::Result<Duration>,
) -> anyhow::Result<Vec<f64>> {
    (0..count)
        .map(|i| {
            stop.check()?;
            Ok(f(i)?.as_secs_f64() * 1e3)
        })
        .collect()
}

/// Runs a command on a host, and returns how long it took.
fn timed(host: &Host, args: &[&str], input: &str) -> anyhow::Result<Duration> {
    let path = if args[0] == OURSELVES {
        PathBuf::from("/proc/self/exe")
    } else {
        program::find(args[0]).with_context(|| format!("find {}", args[0]))?
    };
    let mut command = Command::new(path);
    command.args(&args[1..]);
    let start = Instant::now();
    host.namespace.run(&mut command, input)?;
    Ok(start.elapsed())
}

/// Detaches and unpins what `up` left active, when dropped.
struct Down<'a>(&'a Host);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        if let Err(error) = timed(self.0, &[OURSELVES, "down", "--force"], "") {
            log::warn!("{error:#}");
        }
    }
}

fn ours(host: &Host, stop: &Stop) -> anyhow::Result<Vec<Option<f64>>> {
    let subject = Subject::Ours(EngineChoice::Auto);
    let one = host.write("one.toml", &Variant::of(subject).rules_text(lab::ends(1)))?;
    let many = Variant {
        rules: RULES,
        ..Variant::of(subject)
    };
    let many = host.write("many.toml", &many.rules_text(lab::ends(1)))?;
    let _down = Down(host);
    let up = [
        OURSELVES,
        "up",
        "--iface",
        INTERFACE,
        "--no-local",
        "--follow",
        "--config",
        &one,
    ];
    let mut watcher = host.launch().start(&up)?;
    let is_ready = |process: &Process| process.said().contains("redirecting with ");
    watcher.wait_until("redirects", is_ready)?;
    let load = times(TIMES, stop, |_| {
        timed(host, &[OURSELVES, "apply", "-f", &one], "")?;
        timed(host, &[OURSELVES, "apply", "-f", &many], "")
    })?;
    let change = times(TIMES, stop, |i| {
        let rule = format!("{}:8080", 100 + i);
        timed(host, &[OURSELVES, "add", &rule], "")
    })?;
    Ok(vec![median(load), median(change)])
}

fn theirs(host: &Host, opponent: Opponent, stop: &Stop) -> anyhow::Result<Vec<Option<f64>>> {
    let many = Variant {
        rules: RULES,
        fillers: Some(crate::bench::traffic::Protocol::Tcp),
        ..Variant::of(Subject::Against(opponent))
    };
    let text = many.rules_text(lab::ends(1));
    let (restore, empty, iptables): (&[&str], &[&str], &str) = match opponent {
        Opponent::IptablesLegacy => (
            &["iptables-legacy-restore", "-w"],
            &["iptables-legacy", "-w", "-t", "nat", "-F"],
            "iptables-legacy",
        ),
        Opponent::IptablesNft => (
            &["iptables-nft-restore"],
            &["iptables-nft", "-t", "nat", "-F"],
            "iptables-nft",
        ),
        _ => (&["nft", "-f", "-"], &["nft", "flush", "ruleset"], ""),
    };
    let load = times(TIMES, stop, |_| {
        timed(host, empty, "")?;
        timed(host, restore, &text)
    })?;
    let change = times(TIMES, stop, |i| {
        let port = (100 + i).to_string();
        if iptables.is_empty() {
            let element = format!("{{ {port} : 8080 }}");
            return timed(
                host,
                &[
                    "nft",
                    "add",
                    "element",
                    "ip",
                    "ports",
                    "tcp_ports",
                    &element,
                ],
                "",
            );
        }
        let rule = [
            "-w",
            "-t",
            "nat",
            "-A",
            "PREROUTING",
            "-p",
            "tcp",
            "--dport",
        ];
        let redirect = ["-j", "REDIRECT", "--to-ports", "8080"];
        let args = [&[iptables], &rule[..], &[port.as_str()], &redirect].concat();
        timed(host, &args, "")
    })?;
    Ok(vec![median(load), median(change)])
}

/// The memory of the programs that redirect, and of portredir's tables in the kernel.
///
/// # Errors
///
/// When an installed program does not start.
pub fn memory(dir: &Dir, opponents: &[Opponent], stop: &Stop) -> anyhow::Result<Table> {
    let mut lines = Vec::new();
    for rules in [1, RULES] {
        stop.check()?;
        let variant = Variant {
            rules,
            ..Variant::of(Subject::Ours(EngineChoice::Auto))
        };
        lines.push(used(dir, &variant)?);
    }
    for &opponent in opponents.iter().filter(|opponent| opponent.is_proxy()) {
        stop.check()?;
        if opponent.version().is_ok() {
            lines.push(used(dir, &Variant::of(Subject::Against(opponent)))?);
        }
    }
    Ok(Table {
        title: "Memory, MiB",
        note: "Resident memory of the program, without connections; locked memory of all its eBPF \
               maps at their default sizes, as the kernel accounts for them."
            .to_owned(),
        columns: vec!["resident", "maps in the kernel"],
        lines,
    })
}

fn used(dir: &Dir, variant: &Variant) -> anyhow::Result<Line> {
    let host = Host::new(dir, "m")?;
    let process = redirector::start(variant, lab::ends(1), host.launch())?;
    let process = process.context("find the program that redirects")?;
    // Proxies do not report when they are ready.
    std::thread::sleep(Duration::from_millis(300));
    let proc = PathBuf::from(format!("/proc/{}", process.id()));
    let maps = maps_bytes(&proc).context("read about maps")?;
    const MIB: f64 = 1_048_576.0;
    Ok(Line {
        name: variant.name(),
        figures: vec![
            Some(resident_bytes(&proc)? / MIB),
            (maps > 0.0).then_some(maps / MIB),
        ],
    })
}

/// The resident set of a process (`VmRSS` of proc_pid_status(5)).
fn resident_bytes(proc: &Path) -> anyhow::Result<f64> {
    let status = fs::read_to_string(proc.join("status")).context("read about the process")?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
    let kib: f64 = value.context("read VmRSS")?.parse().context("read VmRSS")?;
    Ok(kib * 1024.0)
}

/// The memory of the maps that a process holds, each once (`memlock` of
/// `bpf_map_show_fdinfo` in kernel/bpf/syscall.c).
fn maps_bytes(proc: &Path) -> anyhow::Result<f64> {
    let mut maps = std::collections::BTreeMap::new();
    for entry in fs::read_dir(proc.join("fdinfo"))? {
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            value
                .trim()
                .parse::<f64>()
                .ok()
                .map(|value| (value, text.clone()))
        };
        if let (Some((bytes, _)), Some((id, _))) = (field("memlock:"), field("map_id:")) {
            maps.insert(id.to_bits(), bytes);
        }
    }
    Ok(maps.values().sum())
}
