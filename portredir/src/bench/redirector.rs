//! A redirector at work: a program that is started, or rules that the kernel is given.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::bench::process::{Launch, OURSELVES, Process};
use crate::bench::program;
use crate::bench::variant::rules::socat;
use crate::bench::variant::{Ends, Subject, Variant, engine_name};
use crate::cli::{Opponent, Topology};

/// The interface of the host that redirects.
pub const INTERFACE: &str = "s0";

/// Starts the redirector, or gives the kernel its rules.
///
/// # Errors
///
/// When the program fails; with its message.
pub fn start(variant: &Variant, ends: Ends, launch: Launch<'_>) -> anyhow::Result<Option<Process>> {
    let namespace = launch.namespace.context("find the namespace")?;
    let text = variant.rules_text(ends);
    let file = launch.dir.join("rules");
    fs::write(&file, &text).context("write the rules")?;
    let file = file.to_str().context("read the name of a directory")?;
    let kernel = |args: &[&str]| {
        let mut command = Command::new(program::find(args[0]).context("find the program")?);
        namespace.run(command.args(&args[1..]), &text)
    };
    match variant.subject {
        Subject::Direct | Subject::DirectAgain(_) => {}
        Subject::Ours(_) => return ours(variant, file, launch).map(Some),
        Subject::Against(opponent) => {
            let words = socat(match variant.topology {
                Topology::Host => Ipv4Addr::LOCALHOST,
                Topology::Forward | Topology::Local => ends.behind,
            });
            let words = words.each_ref().map(String::as_str);
            let args: &[&str] = match opponent {
                Opponent::None => return Ok(None),
                Opponent::IptablesLegacy | Opponent::IptablesNft => {
                    kernel(&[opponent.program(), "-w"])?;
                    return Ok(None);
                }
                Opponent::NftMap | Opponent::NftStateless | Opponent::NftFlowtable => {
                    kernel(&[opponent.program(), "-f", "-"])?;
                    return Ok(None);
                }
                Opponent::Ipvs => {
                    kernel(&[opponent.program(), "-R"])?;
                    return Ok(None);
                }
                Opponent::Nginx => &["nginx", "-e", "stderr", "-p", ".", "-c", file],
                Opponent::Haproxy => &["haproxy", "-db", "-f", file],
                Opponent::Socat => &words,
            };
            return launch.start(args).map(Some);
        }
    }
    Ok(None)
}

/// Starts portredir as a user would, with a rule file.
fn ours(variant: &Variant, file: &str, launch: Launch<'_>) -> anyhow::Result<Process> {
    let Subject::Ours(engine) = variant.subject else {
        bail!("this variant is another redirector");
    };
    let engine = engine_name(engine);
    // Clients on this host come by way of `lo`.
    let interface = match variant.topology {
        Topology::Local => "lo",
        Topology::Host | Topology::Forward => INTERFACE,
    };
    let mut args = vec![OURSELVES, "--iface", interface, "--engine", &engine];
    args.extend(["--interval", "3600", "--config", file]);
    if variant.topology != Topology::Local {
        args.push("--no-local");
    }
    let cgroup = launch.cgroup.map(|cgroup| cgroup.display().to_string());
    if let Some(cgroup) = &cgroup {
        args.extend(["--cgroup", cgroup]);
    }
    // The program takes no part in the traffic: the kernel does.
    let launch = Launch {
        scheduling: None,
        cgroup: None,
        ..launch
    };
    let mut process = launch.start(&args)?;
    let is_ready = |process: &Process| process.said().contains("press Ctrl-C to stop");
    process.wait_until("redirects", is_ready)?;
    Ok(process)
}
