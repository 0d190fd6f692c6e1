//! `portredir explain`: which rule takes a flow, and what becomes of its first packet.

use std::io::{self, BufRead as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};

use super::error::CommandError;
use super::read::print_nothing;
use super::{print, say};
use crate::cli::ExplainArgs;
use crate::controller::error::ControllerError;
use crate::controller::status;
use crate::host::netlink::Netlink;
use crate::host::packet_filter::Filtered;
use crate::ipc::client::Role;
use crate::loader::Sizes;
use crate::loader::live::Live;
use crate::loader::pinned::{self, Found, PinnedError};
use crate::observe::explain::{
    Behind, ExplainError, Explainer, Explanation, Hooked, Judged, OfProcess, Packet, Query,
    Redirect, Serving,
};
use crate::rule::Rule;
use crate::sys::bpffs::PinDir;

/// The time for which the host is taken for unchanged, between two lines of standard input.
const FRESH: Duration = Duration::from_secs(1);

/// The width of a line of text.
const WIDTH: u16 = 80;

/// `portredir explain`.
///
/// # Errors
///
/// Nothing runs, this user may not read its maps, or a flow is not understood.
pub async fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    if let Some(pid) = args.pid {
        let of_process = Explainer::new(running(args.json).await?)?.of_process(pid)?;
        return print(&if args.json {
            serde_json::to_string(&of_process)? + "\n"
        } else {
            process(&of_process)
        });
    }
    let text = args.flow.join(" ");
    if text != "-" {
        let query: Query = text.parse()?;
        let mut explainer = Explainer::new(running(args.json).await?)?;
        return print(&output(&explainer.explain(&query)?, args.json)?);
    }
    let mut explainer = Explainer::new(running(args.json).await?)?;
    let mut read_at = Instant::now();
    let mut skipped = 0;
    for (number, line) in (1..).zip(io::stdin().lock().lines()) {
        let line = line.context("read standard input")?;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if read_at.elapsed() > FRESH || has_changed(explainer.rules()) {
            explainer.renew(running(args.json).await?)?;
            read_at = Instant::now();
        }
        let result = line.parse::<Query>().map_err(anyhow::Error::from);
        match result.and_then(|query| Ok(explainer.explain(&query)?)) {
            Ok(explanation) => {
                let end = if args.json { "" } else { "\n" };
                print(&(output(&explanation, args.json)? + end))?;
            }
            // Captures have lines of all kinds.
            Err(error) => {
                say(&format!("portredir: line {number}: {error:#}"));
                skipped += 1;
            }
        }
    }
    match skipped {
        0 => Ok(()),
        skipped => Err(CommandError::Skipped(skipped).into()),
    }
}

/// Whether a redirect that outlives its process has other rules than these.
fn has_changed(rules: &[(u16, Rule)]) -> bool {
    let found = PinDir::current().map(|pins| pinned::find(&pins));
    match found {
        Ok(Ok(Found::Live(state))) => state.rules() != rules,
        _ => false,
    }
}

/// Reads the redirect that runs, and opens its maps.
async fn running(is_json: bool) -> anyhow::Result<Redirect> {
    let answer = status::read();
    if is_json {
        print_nothing(&answer)?;
    }
    let answer = answer?;
    let sizes = Sizes {
        tcp_flows: answer.settings.max_tcp_flows.get(),
        udp_flows: answer.settings.max_udp_flows.get(),
    };
    let host = Netlink::open()?.snapshot().await?;
    let has_targets = answer
        .settings
        .rules
        .iter()
        .any(|rule| rule.forward().is_some());
    let targets = if has_targets {
        status::targets()?.targets
    } else {
        Vec::new()
    };
    let (rules, live) = if answer.role == Some(Role::Foreground) {
        // These rules have been numbered in order, and do not change.
        let rules = (0..).zip(answer.settings.rules.iter().cloned()).collect();
        let live = Live::of_process(answer.pid, sizes)?;
        let live = live.ok_or_else(|| {
            PinnedError::NotPermitted(io::Error::from(io::ErrorKind::PermissionDenied))
        })?;
        (rules, live)
    } else {
        let pins = PinDir::current().map_err(ControllerError::netns)?;
        let Found::Live(state) = pinned::find(&pins)? else {
            return Err(ControllerError::NotRunning.into());
        };
        let live = Live::pinned(&pins, sizes)?;
        (state.rules(), live.ok_or(ExplainError::OtherMaps)?)
    };
    Ok(Redirect {
        settings: answer.settings,
        rules,
        interfaces: answer.report.interfaces,
        host,
        live,
        targets,
    })
}

fn output(explanation: &Explanation, is_json: bool) -> anyhow::Result<String> {
    if is_json {
        Ok(serde_json::to_string(explanation)? + "\n")
    } else {
        Ok(text(explanation))
    }
}

fn text(explanation: &Explanation) -> String {
    let Explanation {
        flow,
        assumed,
        verdict,
        why,
        rule,
        port,
        method,
        ..
    } = explanation;
    let mut table = table();
    table.add_row(["flow", flow]);
    for assumed in assumed {
        table.add_row(["assumed", assumed]);
    }
    table.add_row([
        "verdict",
        &match (rule, *verdict) {
            (Some(rule), "redirected") if !explanation.targets.is_empty() => {
                let target = explanation.target.as_deref();
                let target = target.unwrap_or("one of its targets");
                format!("redirected to {target} by {rule}")
            }
            (Some(rule), "redirected") => format!("redirected to port {port} by {rule}"),
            (None, "redirected") => format!("redirected to port {port}"),
            _ => {
                let prefix = format!("{verdict}: ");
                format!("{prefix}{}", why.trim_start_matches(&prefix))
            }
        },
    ]);
    if let Some(program) = program(explanation) {
        table.add_row(["program", &program]);
    }
    table.add_row(["method", method.text()]);
    if let Some(before) = &explanation.before {
        table.add_row(["before", &packet(before)]);
        let after = explanation.after.as_ref();
        let after = after.map_or_else(|| "-".to_owned(), packet);
        table.add_row(["after", &after]);
    }
    if explanation.rules.is_empty() {
        table.add_row(["rules", "no rule names the port"]);
    }
    for Judged { rule, wins, why } in &explanation.rules {
        let word = if *wins { "wins" } else { "loses" };
        table.add_row([word, &format!("{rule}: {why}")]);
    }
    for one in &explanation.targets {
        let word = match one.wins {
            Some(true) => "gets it",
            Some(false) => "target",
            None => "may get it",
        };
        table.add_row([word, &format!("{}: {}", one.target, one.why)]);
    }
    behind(&mut table, explanation);
    finished(table)
}

/// The sockets of a process: a line for each that waits for clients, then each flow.
fn process(of_process: &OfProcess) -> String {
    let mut table = table();
    for serving in &of_process.listening {
        let Serving {
            protocol,
            addr,
            port,
            rules,
            taken_by,
        } = serving;
        let place = format!("{port}/{protocol} ({addr})");
        let to = match rules.as_slice() {
            [] => "no rule leads here".to_owned(),
            rules => format!("clients of {}", rules.join(", ")),
        };
        table.add_row(["listens on", &format!("{place}: {to}")]);
        if !taken_by.is_empty() {
            let taken_by = taken_by.join(", ");
            table.add_row(["", &format!("its clients are taken by {taken_by}")]);
        }
    }
    if of_process.listening.is_empty() {
        table.add_row(["listens on", "no port"]);
    }
    for unknown in &of_process.not_evaluated {
        table.add_row(["not evaluated", unknown]);
    }
    let flows = of_process
        .flows
        .iter()
        .map(|flow| format!("\n{}", text(flow)));
    let flows: String = flows.collect();
    format!("{}{flows}", finished(table))
}

/// A table as text.
fn finished(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n", table.trim_fmt())
}

/// Adds what stands behind the program.
fn behind(table: &mut Table, explanation: &Explanation) {
    if let Some(known) = &explanation.known_flow {
        table.add_row(["flow table", known]);
    }
    let Behind {
        programs,
        route,
        firewall,
        listeners,
        not_evaluated,
    } = &explanation.behind;
    for Hooked { hook, programs } in programs {
        table.add_row(["hook", &format!("{hook}: {}", programs.join(", "))]);
    }
    if route != "-" {
        table.add_row(["route", route]);
    }
    for one in firewall {
        let by = match one.by.as_slice() {
            [] if one.verdict == "not evaluated" => String::new(),
            [] => " by its policy".to_owned(),
            rules => format!(": {}", rules.join("; ")),
        };
        let Filtered {
            hook,
            chain,
            verdict,
            ..
        } = one;
        table.add_row(["firewall", &format!("{hook}, {chain}: {verdict}{by}")]);
    }
    for listener in listeners {
        table.add_row(["server", listener]);
    }
    for unknown in not_evaluated {
        table.add_row(["not evaluated", unknown]);
    }
}

fn program(explanation: &Explanation) -> Option<String> {
    let program = explanation.program.as_ref()?;
    let interface = explanation.interface.as_deref().unwrap_or("-");
    let engine = explanation.engine.as_deref().unwrap_or("-");
    let hook = explanation.hook.as_deref().unwrap_or("-");
    Some(format!(
        "{program} on {interface}, engine {engine}, hook {hook}"
    ))
}

fn packet(packet: &Packet) -> String {
    format!("{} {} -> {}", packet.protocol, packet.src, packet.dst)
}

fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    table
}
