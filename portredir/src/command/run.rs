//! The foreground run: redirect, show counters, end with the process.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Interval;

use super::{event, journal, listening, say, try_print};
use crate::cli::Run;
use crate::config::settings::Settings;
use crate::controller::change::{Action, Change, Diff, HostView};
use crate::controller::error::ControllerError;
use crate::controller::event_loop::{RESCAN_INTERVAL, Signals, every, mend};
use crate::controller::{Controller, Parts};
use crate::host::netlink::Netlink;
use crate::host::preflight;
use crate::ipc::client::{Control, Request, Role};
use crate::ipc::scrape::Scrapes;
use crate::loader::chain;
use crate::loader::pinned::{self, Found};
use crate::observe::report::Report;
use crate::state::State;
use crate::sys::bpffs::PinDir;
use crate::sys::capability;
use crate::sys::lock::Lock;

/// Redirects until SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
///
/// The settings are impossible, or the kernel refuses. No program stays attached.
pub async fn run(args: &Run) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
    let netlink = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    let host = HostView::new(snapshot, &settings, Default::default());
    let wanted = (Action::Run(settings.clone()), args.change());
    let change = Change::plan(None, wanted, host).map_err(ControllerError::from)?;
    preflight::check_capabilities()?;
    preflight::check_kernel()?;
    let _lock = Lock::take()?;
    refuse_active()?;
    let mut control = Control::listen().context("listen on the control socket")?;
    let scrapes = serve_metrics(&control, &settings)?;
    let mut signals = Signals::new()?;
    let mut controller = Controller::open(Parts {
        state: State::empty(settings.clone()),
        settings: settings.clone(),
        netlink,
        pins: None,
    })?;
    controller.log_decisions();
    controller.serve_metrics(scrapes, &mut event::print);
    begin(&mut controller, change).await?;
    if let Err(error) = capability::drop_capabilities() {
        log::warn!("cannot drop unneeded capabilities: {error}");
    }
    let rules: Vec<_> = settings.rules.iter().map(ToString::to_string).collect();
    say(&format!(
        "redirecting {}; press Ctrl-C to stop",
        rules.join(" ")
    ));

    let mut ticks = every(args.interval);
    ticks.tick().await;
    let mut view = View {
        args,
        ticks,
        before: None,
        has_failed: false,
    };
    let result = view
        .watch(&mut controller, &mut control, &mut signals)
        .await;
    // Draining removes the rules; the counters of their flows go on.
    let last = controller.state().clone();
    if result.is_ok() {
        end_line();
        drain(&mut controller, &mut signals, settings.drain_timeout.0).await;
    }
    let report = controller.report_of(&last);
    controller.act(Action::Detach, &mut event::print).await?;
    journal::change("end", &Diff::default());
    result?;
    view.print_final(&report?);
    Ok(())
}

/// Serves metrics where the settings say so.
fn serve_metrics(control: &Control, settings: &Settings) -> Result<Scrapes, ControllerError> {
    let mut scrapes = Scrapes::new(control.caller());
    let addr = settings.metrics.get();
    let served = scrapes.serve_at(addr);
    match (served, addr) {
        (Err(source), Some(addr)) => Err(ControllerError::Metrics { addr, source }),
        _ => Ok(scrapes),
    }
}

/// Prints the plan, and carries it out.
async fn begin(controller: &mut Controller, change: Change) -> Result<(), ControllerError> {
    listening::say_plan(&change);
    let made = change.diff().clone();
    controller.apply(change, &mut event::print).await?;
    journal::change("run", &made);
    listening::say_packet_filters(&controller.state().settings);
    Ok(())
}

/// Ends the line on which a terminal shows `^C`.
fn end_line() {
    if std::io::stderr().is_terminal() {
        say("");
    }
}

/// Refuses to redirect beside a redirect that `portredir up` left active.
fn refuse_active() -> Result<(), ControllerError> {
    let pins = PinDir::current().map_err(ControllerError::netns)?;
    // A user who may not read the directory cannot have run `up`.
    match pinned::find(&pins) {
        Ok(Found::Live(_) | Found::Unfinished) => Err(ControllerError::Attached),
        _ => Ok(()),
    }
}

/// Waits for redirected connections, for `timeout` at most or until a signal.
async fn drain(controller: &mut Controller, signals: &mut Signals, timeout: Duration) {
    let mut on_event = event::print;
    tokio::select! {
        _ = signals.next() => {}
        drained = controller.act(Action::Drain(timeout), &mut on_event) => {
            if let Err(error) = drained {
                log::warn!("{}", chain(&error));
            }
        }
    }
}

/// The output of the foreground run.
struct View<'a> {
    args: &'a Run,
    ticks: Interval,
    before: Option<Report>,
    /// Whether standard output has refused a text.
    has_failed: bool,
}

impl View<'_> {
    /// Keeps the redirect in step with the host and prints counters, until a signal
    /// or a request to stop.
    async fn watch(
        &mut self,
        controller: &mut Controller,
        control: &mut Control,
        signals: &mut Signals,
    ) -> anyhow::Result<()> {
        let mut rescan = every(RESCAN_INTERVAL);
        let mut inspect = every(RESCAN_INTERVAL);
        loop {
            // Changes that came while this process was busy are noticed as well.
            tokio::select! {
                _ = signals.next() => return Ok(()),
                call = control.next() => {
                    let request = call.request;
                    call.answer(controller.reply(Role::Foreground, request));
                    if request == Request::Stop {
                        return Ok(());
                    }
                }
                () = controller.host_changed() => {
                    if let Err(error) = controller.reconcile(&mut event::print).await {
                        log::warn!("{}", chain(&error));
                    }
                }
                _ = rescan.tick(), if controller.needs_listeners() => {
                    if let Err(error) = controller.register(&mut event::print) {
                        log::warn!("{}", chain(&error));
                    }
                }
                _ = inspect.tick() => inspect = mend(controller, &mut event::print).await,
                _ = self.ticks.tick() => {
                    if let Err(error) = self.print_changes(controller) {
                        log::warn!("{}", chain(&error));
                    }
                }
            }
        }
    }

    fn print_changes(&mut self, controller: &Controller) -> Result<(), ControllerError> {
        let report = controller.report()?;
        let lines = report.changes(self.before.as_ref());
        self.print(&report, &lines);
        self.before = Some(report);
        Ok(())
    }

    fn print_final(&mut self, report: &Report) {
        self.print(report, &report.summary());
    }

    /// Prints. A reader that has gone and a full disk do not end the redirect.
    fn print(&mut self, report: &Report, lines: &[String]) {
        let text = if self.args.json {
            serde_json::to_string(report).expect("a report is JSON") + "\n"
        } else {
            lines.iter().map(|line| format!("{line}\n")).collect()
        };
        match try_print(&text) {
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                say(&format!(
                    "cannot write counters to standard output: {error}; still redirecting"
                ));
            }
            _ => {}
        }
    }
}
