//! `portredir connections`: the live flows, once or again and again.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::ignore_closed;
use super::read::print_nothing;
use crate::cli::ConnectionsArgs;
use crate::controller::status;
use crate::observe::connections::{Filter, List, text};

/// Clears the screen of a terminal, with what is above it.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// `portredir connections`.
///
/// # Errors
///
/// The filter is wrong, nothing runs, or this user may not read flows.
pub async fn connections(args: &ConnectionsArgs) -> anyhow::Result<()> {
    let filter = Filter::parse(&args.filter)?;
    let Some(interval) = args.watch else {
        let list = read(args, &filter)?;
        return ignore_closed(write(args, &list, ""));
    };
    let mut end = End::new()?;
    let is_screen = io::stdout().is_terminal() && !args.json;
    loop {
        let list = read(args, &filter)?;
        let before = if is_screen { CLEAR } else { "" };
        match write(args, &list, before) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.context("write to standard output")?,
        }
        if end.comes_within(interval).await {
            return Ok(());
        }
    }
}

/// Reads the list. Programs that read JSON get an object also where nothing runs.
fn read(args: &ConnectionsArgs, filter: &Filter) -> anyhow::Result<List> {
    let list = status::flows(filter);
    if args.json {
        print_nothing(&list)?;
    }
    Ok(list?)
}

fn write(args: &ConnectionsArgs, list: &List, before: &str) -> io::Result<()> {
    if args.json {
        return write_json(list);
    }
    let mut out = io::stdout().lock();
    out.write_all(before.as_bytes())?;
    out.write_all(text(list, args.table.into()).as_bytes())?;
    if args.watch.is_some() && before.is_empty() {
        // An empty line ends each list of a file.
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Writes a line of JSON piece by piece: a list may be long.
fn write_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// The ends of a watch: Ctrl-C, SIGTERM, and a pipe that nobody reads any more.
struct End {
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits; returns whether the watch ends before the time is over.
    async fn comes_within(&mut self, time: Duration) -> bool {
        const POLL: Duration = Duration::from_millis(200);
        let end = tokio::time::Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            tokio::select! {
                _ = self.interrupt.recv() => return true,
                _ = self.terminate.recv() => return true,
                () = tokio::time::sleep(POLL.min(left)) => {}
            }
            if is_closed(io::stdout().as_fd()) {
                return true;
            }
        }
    }
}

/// Whether a pipe has no reader any more.
fn is_closed(out: BorrowedFd<'_>) -> bool {
    let mut poll_fds = [PollFd::new(out, PollFlags::empty())];
    let polled = poll(&mut poll_fds, PollTimeout::ZERO);
    let events = poll_fds[0].revents().unwrap_or(PollFlags::empty());
    polled.is_ok() && events.contains(PollFlags::POLLERR)
}
