//! The controlling side of the client: tells it what to measure and reads its results.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::bench::load::request::Request;
use crate::bench::load::{Event, Measured};
use crate::bench::process::{Launch, OURSELVES, Process};
use crate::bench::stop::Stop;

/// A cycle that takes longer has come to a standstill.
const PATIENCE: Duration = Duration::from_secs(60);

/// The client's process.
#[derive(Debug)]
pub struct Client {
    process: Process,
    requests: ChildStdin,
    events: Receiver<String>,
}

impl Client {
    /// Starts the client.
    ///
    /// # Errors
    ///
    /// When the client cannot be started.
    pub fn start(launch: Launch<'_>) -> anyhow::Result<Self> {
        let launch = Launch {
            is_piped: true,
            ..launch
        };
        let mut process = launch.start(&[OURSELVES, "bench", "load"])?;
        let (requests, stdout) = process.pipes();
        let events = lines(stdout);
        Ok(Self {
            process,
            requests,
            events,
        })
    }

    /// Lets the client measure; calls `on_cycle` after each cycle.
    ///
    /// # Errors
    ///
    /// When the client reports an error or ends, or when the benchmark is to stop.
    pub fn measure(
        &mut self,
        request: &Request,
        stop: &Stop,
        mut on_cycle: impl FnMut(),
    ) -> anyhow::Result<Measured> {
        let line = serde_json::to_string(request)? + "\n";
        let sent = self.requests.write_all(line.as_bytes());
        sent.with_context(|| format!("tell the client: {}", self.process.said()))?;
        let mut last = Instant::now();
        loop {
            stop.check()?;
            let line = match self.events.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if last.elapsed() < PATIENCE => continue,
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "the client has come to a standstill: {}",
                        self.process.said()
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the client has ended: {}", self.process.said())
                }
            };
            last = Instant::now();
            match serde_json::from_str(&line).context("understand the client")? {
                Event::Cycle => on_cycle(),
                Event::Done(measured) => return Ok(measured),
                Event::Failed(reason) => bail!(reason),
            }
        }
    }
}

/// The lines that a process prints, from a thread that ends with the process.
#[must_use]
pub fn lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}
