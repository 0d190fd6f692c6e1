//! The foreground run: redirect, show counters, end with the process.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Interval;

use super::live::{self, Exit, Identity, Live, Owner, Sample};
use super::{event, journal, lines, listening, say, try_print};
use crate::cli::Run;
use crate::config::settings::Settings;
use crate::controller::change::{Action, Change, Diff, HostView};
use crate::controller::error::ControllerError;
use crate::controller::event_loop::{
    LOOK_INTERVAL, RESCAN_INTERVAL, Signals, every, follow_taken, mend,
};
use crate::controller::targets::Care;
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

/// Whether the live view shows the counters: on a terminal, unless lines or JSON are asked
/// for.
#[must_use]
pub fn shows_view(args: &Run) -> bool {
    !args.plain && !args.json && live::obstacle().is_none()
}

/// Redirects until SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
///
/// The settings are impossible, or the kernel refuses. No program stays attached.
pub async fn run(args: &Run) -> anyhow::Result<()> {
    let settings = args.options.settings()?;
    let has_view = shows_view(args);
    if has_view {
        lines::keep();
    }
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

    let mut view = View::new(args).await;
    if has_view {
        view.begin(&controller)?;
    }
    let result = view
        .watch(&mut controller, &mut control, &mut signals)
        .await;
    // Draining removes the rules; the counters of their flows go on.
    let last = controller.state().clone();
    if result.is_ok() {
        view.drain(&mut controller, &mut signals).await;
    }
    // Before the last lines and numbers, which stay on the terminal.
    view.live = None;
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

/// The output of the foreground run.
struct View<'a> {
    args: &'a Run,
    ticks: Interval,
    before: Option<Report>,
    /// Whether standard output has refused a text.
    has_failed: bool,
    /// The live view, while it has the terminal.
    live: Option<Live>,
}

/// Waits for the end of the live view; for ever when there is none.
async fn attend(live: &mut Option<Live>) -> Exit {
    match live {
        Some(live) => live.attend().await,
        None => std::future::pending().await,
    }
}

impl<'a> View<'a> {
    /// The interval of lines and of JSON objects.
    const INTERVAL: Duration = Duration::from_secs(2);

    /// The interval of the live view.
    const LIVE_INTERVAL: Duration = Duration::from_secs(1);

    async fn new(args: &'a Run) -> Self {
        let mut ticks = every(args.interval.unwrap_or(Self::INTERVAL));
        ticks.tick().await;
        Self {
            args,
            ticks,
            before: None,
            has_failed: false,
            live: None,
        }
    }

    /// Begins the live view.
    fn begin(&mut self, controller: &Controller) -> anyhow::Result<()> {
        let live = Live::start(Owner::Run).context("begin the live view")?;
        self.live = Some(live);
        self.ticks = every(self.args.interval.unwrap_or(Self::LIVE_INTERVAL));
        self.print_changes(controller)?;
        Ok(())
    }

    /// Goes on with lines, without the live view.
    fn leave(&mut self, exit: Exit) {
        self.live = None;
        self.ticks = every(self.args.interval.unwrap_or(Self::INTERVAL));
        match exit {
            Exit::Quit => say("still redirecting; press Ctrl-C to stop"),
            Exit::Lost(error) => say(&format!(
                "the live view has ended: {error}; still redirecting"
            )),
        }
    }

    /// Waits for redirected connections, for the time of the settings at most or until a
    /// signal.
    async fn drain(&mut self, controller: &mut Controller, signals: &mut Signals) {
        const REFRESH: Duration = Duration::from_millis(500);
        if self.live.is_none() {
            end_line();
        }
        let timeout = controller.state().settings.drain_timeout.0;
        let mut on_event = event::print;
        let mut refresh = every(REFRESH);
        let mut drained = std::pin::pin!(controller.act(Action::Drain(timeout), &mut on_event));
        loop {
            tokio::select! {
                _ = signals.next() => return,
                drained = &mut drained => {
                    if let Err(error) = drained {
                        log::warn!("{}", chain(&error));
                    }
                    return;
                }
                exit = attend(&mut self.live) => self.leave(exit),
                _ = refresh.tick() => {
                    if let Some(live) = &self.live {
                        live.refresh();
                    }
                }
            }
        }
    }

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
        let mut look = every(LOOK_INTERVAL);
        let mut care = Care::start();
        loop {
            care.follow(controller);
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
                exit = attend(&mut self.live) => self.leave(exit),
                due = care.due() => care.attend(due, controller, &mut event::print).await,
                _ = inspect.tick() => match mend(controller, &mut event::print).await {
                    Some(next) => inspect = next,
                    None => return Ok(()),
                },
                _ = look.tick(), if controller.asks_for_listeners() => {
                    look = follow_taken(controller, &mut event::print).await;
                }
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
        if let Some(live) = &self.live {
            live.show(Ok(Box::new(sample(report))));
            return Ok(());
        }
        let lines = report.changes(self.before.as_ref());
        self.print(&report, &lines);
        self.before = Some(report);
        Ok(())
    }

    fn print_final(&mut self, report: &Report) {
        self.print(report, &report.summary(self.args.table.into()));
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

/// A report of this process, for the live view.
fn sample(report: Report) -> Sample {
    let pid = std::process::id();
    Sample {
        identity: Identity {
            since: None,
            pid: Some(pid),
        },
        title: format!(
            "portredir {}: redirecting, process {pid}",
            env!("CARGO_PKG_VERSION")
        ),
        report,
    }
}
