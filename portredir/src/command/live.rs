//! The live view of `portredir top` and of the foreground run: rates, connections, drops
//! and messages on the whole terminal, until the user or the command ends it.

mod draw;
mod key;
mod model;
mod number;
mod rate;
#[cfg(test)]
pub mod sample;
mod screen;
mod table;
#[cfg(test)]
mod tests;
mod theme;
mod worker;

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

pub use model::{Owner, Sample};
pub use rate::Identity;
pub use worker::Exit;

use self::model::Model;
use self::worker::{Order, Shared};
use super::lines;
use crate::sys::terminal;

/// A view that is shown whenever this process has the terminal.
pub struct Live {
    shared: Arc<Shared>,
    exits: UnboundedReceiver<Exit>,
    stop: Signal,
    proceed: Signal,
    resize: Signal,
}

/// The reason why there can be no view; `None` when there can.
#[must_use]
pub fn obstacle() -> Option<&'static str> {
    if !terminal::is_ours(&std::io::stdout()) {
        return Some("standard input and output are not the terminal of this process");
    }
    match std::env::var("TERM").as_deref() {
        Ok("dumb" | "") | Err(_) => Some("TERM names no terminal that can move its cursor"),
        Ok(_) => None,
    }
}

impl Live {
    /// Takes the terminal.
    ///
    /// # Errors
    ///
    /// The kernel refuses a handler or a thread.
    pub fn start(owner: Owner) -> io::Result<Self> {
        let (sender, exits) = unbounded_channel();
        Ok(Self {
            stop: signal(SignalKind::from_raw(libc::SIGTSTP))?,
            proceed: signal(SignalKind::from_raw(libc::SIGCONT))?,
            resize: signal(SignalKind::window_change())?,
            shared: Shared::start(Model::new(owner), sender)?,
            exits,
        })
    }

    /// Shows the newest numbers, or the reason why there are none.
    pub fn show(&self, sample: Result<Box<Sample>, String>) {
        self.shared.show(sample);
    }

    /// Shows new lines and the work that goes on.
    pub fn refresh(&self) {
        self.shared.refresh();
    }

    /// Follows the terminal, its size and Ctrl-Z, until the view ends by itself.
    pub async fn attend(&mut self) -> Exit {
        loop {
            tokio::select! {
                exit = self.exits.recv() => {
                    let gone = || Exit::Lost(io::ErrorKind::BrokenPipe.into());
                    return exit.unwrap_or_else(gone);
                }
                _ = self.stop.recv() => {
                    self.shared.take_terminal(Order::Rest);
                    if let Err(error) = terminal::stop() {
                        log::warn!("cannot stop this process: {error}");
                    }
                    self.shared.order(Order::Show);
                }
                _ = self.proceed.recv() => self.shared.redraw(),
                _ = self.resize.recv() => self.shared.refresh(),
            }
        }
    }
}

impl Drop for Live {
    /// Gives the terminal back, and prints the lines that only the view has shown.
    fn drop(&mut self) {
        self.shared.take_terminal(Order::End);
        lines::show_on_stderr();
        if let Err(error) = terminal::default_stop() {
            log::warn!("Ctrl-Z stays without effect: {error}");
        }
    }
}
