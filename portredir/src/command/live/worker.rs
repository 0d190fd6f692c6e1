//! The thread that has the terminal. A terminal that takes no bytes, as over a broken
//! connection, stops this thread and not the redirect.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::key;
use super::model::{Model, Sample, Wish};
use super::screen::{self, Screen};
use crate::command::lines;
use crate::sys::terminal::{self, Input, Ours};

/// The number of lines that the view keeps at hand.
const LINES: usize = 200;

/// The request of the process to the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Show the view whenever the terminal is ours.
    Show,
    /// Give the terminal back, until further notice.
    Rest,
    /// Give the terminal back and end.
    End,
}

/// The state of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// The thread begins, or has the terminal.
    Showing,
    /// The thread has no terminal.
    Resting,
}

/// The end of the view, by the user or by the terminal.
#[derive(Debug)]
pub enum Exit {
    /// The user typed `q`.
    Quit,
    /// The terminal is gone.
    Lost(io::Error),
}

struct Inbox {
    order: Order,
    activity: Activity,
    sample: Option<Result<Box<Sample>, String>>,
    /// Whether all has to be drawn again.
    is_stale: bool,
}

/// The state that the process and the thread share.
pub struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
    wake: UnixStream,
}

impl Shared {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When there are too many open files or threads.
    pub fn start(model: Model, exits: UnboundedSender<Exit>) -> io::Result<Arc<Self>> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Arc::new(Self {
            inbox: Mutex::new(Inbox {
                order: Order::Show,
                activity: Activity::Showing,
                sample: None,
                is_stale: false,
            }),
            changed: Condvar::new(),
            wake,
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            woken,
            model,
            screen: None,
        };
        std::thread::Builder::new()
            .name("view".to_owned())
            .spawn(move || worker.run(&exits))?;
        Ok(shared)
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full buffer means that the thread is woken already.
        let _ = (&self.wake).write(&[0]);
    }

    /// Gives the thread the newest numbers, or the reason why there are none.
    pub fn show(&self, sample: Result<Box<Sample>, String>) {
        self.inbox().sample = Some(sample);
        self.wake();
    }

    /// Lets the thread look at its size, the work and the lines again.
    pub fn refresh(&self) {
        self.wake();
    }

    /// Lets the thread draw everything again: somebody else has drawn.
    pub fn redraw(&self) {
        self.inbox().is_stale = true;
        self.wake();
    }

    /// Gives an order.
    pub fn order(&self, order: Order) {
        self.inbox().order = order;
        self.wake();
    }

    /// Orders the thread to give the terminal back and waits until it has. A thread that a
    /// terminal holds up is not waited for.
    pub fn take_terminal(&self, order: Order) {
        const LONGEST: Duration = Duration::from_secs(1);
        self.order(order);
        let inbox = self.inbox();
        let waited = self
            .changed
            .wait_timeout_while(inbox, LONGEST, |inbox| inbox.activity == Activity::Showing);
        drop(waited);
        screen::give_back();
    }
}

struct Worker {
    shared: Arc<Shared>,
    woken: UnixStream,
    model: Model,
    screen: Option<Screen>,
}

impl Worker {
    fn run(mut self, exits: &UnboundedSender<Exit>) {
        let exit = loop {
            match self.step() {
                Ok(None) => {}
                Ok(Some(exit)) => break exit,
                Err(error) => break Some(Exit::Lost(error)),
            }
        };
        self.give_back();
        // The process may have ended the view by itself.
        let _ = exit.map(|exit| exits.send(exit));
    }

    /// Draws, and waits for keys and orders; returns whether and why the view ends.
    fn step(&mut self) -> io::Result<Option<Option<Exit>>> {
        const BACKGROUND: Duration = Duration::from_millis(500);
        match self.read_orders()? {
            Order::End => return Ok(Some(None)),
            Order::Rest => self.give_back(),
            Order::Show if !terminal::is_ours(&io::stdout()) => self.leave_to_others(),
            Order::Show => self.draw()?,
        }
        let (ours, timeout) = match &self.screen {
            Some(_) => (Ours::Yes, None),
            None => (Ours::No, Some(BACKGROUND)),
        };
        let input = terminal::wait(ours, self.woken.as_fd(), timeout)?;
        let _ = (&self.woken).read(&mut [0; 64]);
        match input {
            Input::Nothing => Ok(None),
            Input::Closed => Err(io::ErrorKind::BrokenPipe.into()),
            Input::Keys if !terminal::is_ours(&io::stdout()) => Ok(None),
            Input::Keys => self.read_keys(),
        }
    }

    fn read_orders(&mut self) -> io::Result<Order> {
        let mut inbox = self.shared.inbox();
        let sample = inbox.sample.take();
        let is_stale = std::mem::take(&mut inbox.is_stale);
        let order = inbox.order;
        drop(inbox);
        match sample {
            Some(Ok(sample)) => self.model.take(*sample),
            Some(Err(trouble)) => self.model.lose(trouble),
            None => {}
        }
        if is_stale && terminal::is_ours(&io::stdout()) && self.screen.is_some() {
            // The shell may have set the modes, too.
            self.screen = Some(Screen::take()?);
        }
        Ok(order)
    }

    fn draw(&mut self) -> io::Result<()> {
        let screen = match self.screen.take() {
            Some(screen) => screen,
            None => {
                let screen = Screen::take()?;
                lines::show_in_view();
                self.shared.inbox().activity = Activity::Showing;
                screen
            }
        };
        (self.model.lines, self.model.work) = lines::newest(LINES);
        self.screen.insert(screen).draw(&self.model)
    }

    fn read_keys(&mut self) -> io::Result<Option<Option<Exit>>> {
        let mut buffer = [0; 256];
        let length = terminal::read_keys(&mut buffer)?;
        for key in key::keys(&buffer[..length]) {
            match (self.model.press(key), &mut self.screen) {
                (Wish::Quit, _) => return Ok(Some(Some(Exit::Quit))),
                (Wish::Redraw, Some(screen)) => screen.forget()?,
                _ => {}
            }
        }
        Ok(None)
    }

    fn give_back(&mut self) {
        if self.screen.take().is_some() {
            screen::give_back();
        }
        self.rest();
    }

    /// Leaves the terminal as it is: the shell has it, and has set its modes.
    fn leave_to_others(&mut self) {
        self.screen = None;
        self.rest();
    }

    fn rest(&self) {
        self.shared.inbox().activity = Activity::Resting;
        self.shared.changed.notify_all();
    }
}
