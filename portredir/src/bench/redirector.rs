//! A redirector at work: a program that is started, or rules that the kernel is given.

use std::fs;
use std::process::Command;

use anyhow::Context as _;

use crate::bench::process::{Launch, OURSELVES, Process};
use crate::bench::program;
use crate::bench::variant::rules::SOCAT;
use crate::bench::variant::{Subject, Variant, engine_name};
use crate::cli::Opponent;

/// The interface of the host that redirects.
pub const INTERFACE: &str = "s0";

/// Starts the redirector, or gives the kernel its rules.
///
/// # Errors
///
/// When the program fails; with its message.
pub fn start(variant: &Variant, launch: Launch<'_>) -> anyhow::Result<Option<Process>> {
    let namespace = launch.namespace.context("find the namespace")?;
    let text = variant.rules_text();
    let file = launch.dir.join("rules");
    fs::write(&file, &text).context("write the rules")?;
    let file = file.to_str().context("read the name of a directory")?;
    let kernel = |args: &[&str]| {
        let mut command = Command::new(program::find(args[0]).context("find the program")?);
        namespace.run(command.args(&args[1..]), &text)
    };
    match variant.subject {
        Subject::Direct | Subject::DirectAgain(_) => {}
        Subject::Ours(engine) => {
            let engine = engine_name(engine);
            let mut args = vec![OURSELVES, "--iface", INTERFACE, "--engine", &engine];
            args.extend(["--no-local", "--interval", "3600", "--config", file]);
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
            return Ok(Some(process));
        }
        Subject::Against(opponent) => {
            let args: &[&str] = match opponent {
                Opponent::None => return Ok(None),
                Opponent::IptablesLegacy | Opponent::IptablesNft => {
                    kernel(&[opponent.program(), "-w"])?;
                    return Ok(None);
                }
                Opponent::NftMap | Opponent::NftStateless => {
                    kernel(&[opponent.program(), "-f", "-"])?;
                    return Ok(None);
                }
                Opponent::Nginx => &["nginx", "-e", "stderr", "-p", ".", "-c", file],
                Opponent::Haproxy => &["haproxy", "-db", "-f", file],
                Opponent::Socat => &SOCAT,
            };
            return launch.start(args).map(Some);
        }
    }
    Ok(None)
}
