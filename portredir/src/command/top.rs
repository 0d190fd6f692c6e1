//! `portredir top`: the live view of a redirect that another process keeps.

use std::sync::mpsc::{Receiver, channel};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::error::CommandError;
use super::live::{self, Exit, Identity, Live, Owner, Sample};
use super::status::who;
use super::{lines, say};
use crate::cli::TopArgs;
use crate::controller::error::ControllerError;
use crate::controller::event_loop::{Signals, every};
use crate::controller::status;
use crate::ipc::client::{Answer, Role};
use crate::loader::chain;

/// `portredir top`.
///
/// # Errors
///
/// Nothing is active, this user may not read it, or there is no terminal.
pub async fn top(args: TopArgs) -> anyhow::Result<()> {
    if let Some(obstacle) = live::obstacle() {
        return Err(CommandError::NoTerminal(obstacle).into());
    }
    let first = status::read()?;
    let mut signals = Signals::new()?;
    let (ask, questions) = channel();
    let (answers, mut answered) = unbounded_channel();
    read_in_thread(questions, answers)?;
    lines::keep();
    let mut live = Live::start(Owner::Top)?;
    let mut ticks = every(args.interval);
    ticks.tick().await;
    let mut below = Below::Runs(identity(&first));
    live.show(Ok(Box::new(sample(first))));
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(()),
            exit = live.attend() => return end(exit),
            Some(answer) = answered.recv() => live.show(below.follow(answer)),
            // A question that is not answered yet stands for this one as well.
            _ = ticks.tick() => drop(ask.send(())),
        }
        while let Ok(answer) = answered.try_recv() {
            live.show(below.follow(answer));
        }
    }
}

fn end(exit: Exit) -> anyhow::Result<()> {
    match exit {
        Exit::Quit => Ok(()),
        Exit::Lost(error) => Err(anyhow::Error::new(error).context("the terminal is gone")),
    }
}

type Answered = Result<Box<Answer>, ControllerError>;

/// Reads the running configuration, each time that it is asked to, in a thread: a process
/// that does not answer delays no key.
fn read_in_thread(
    questions: Receiver<()>,
    answers: UnboundedSender<Answered>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let read = move || {
        let _context = runtime.enter();
        while questions.recv().is_ok() {
            while questions.try_recv().is_ok() {}
            if answers.send(status::read().map(Box::new)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("reader".to_owned());
    thread.spawn(read).map(drop)
}

/// The redirect below the view.
#[derive(Debug)]
enum Below {
    /// A redirect.
    Runs(Identity),
    /// None, or one that cannot be read.
    Lost,
}

impl Below {
    /// Takes an answer, and says when the redirect has ended or is another one.
    fn follow(&mut self, answer: Answered) -> Result<Box<Sample>, String> {
        match answer {
            Ok(answer) => {
                let new = identity(&answer);
                let is_new = !matches!(self, Self::Runs(old) if *old == new);
                if is_new {
                    say(&format!("another redirect runs: {}", who(&answer)));
                }
                *self = Self::Runs(new);
                Ok(Box::new(sample(*answer)))
            }
            Err(error) => {
                let why = chain(&error);
                if matches!(self, Self::Runs(_)) {
                    say(&format!("the redirect cannot be read any more: {why}"));
                }
                *self = Self::Lost;
                Err(format!("waiting for a redirect: {why}"))
            }
        }
    }
}

/// The redirect that an answer is about. A new watcher does not make another one.
fn identity(answer: &Answer) -> Identity {
    Identity {
        since: answer.since.as_ref().map(|since| since.time.to_string()),
        pid: (answer.role == Some(Role::Foreground)).then_some(answer.pid),
    }
}

fn sample(answer: Answer) -> Sample {
    Sample {
        identity: identity(&answer),
        title: format!("portredir {}: {}", answer.version, who(&answer)),
        report: answer.report,
    }
}
