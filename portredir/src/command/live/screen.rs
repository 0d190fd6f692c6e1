//! The terminal while the view has it, and its return in every case.

use std::io::{self, Stdout, Write as _};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::Termios;
use ratatui_core::terminal::Terminal;
use ratatui_crossterm::CrosstermBackend;
use ratatui_crossterm::crossterm::cursor::{Hide, MoveTo, Show};
use ratatui_crossterm::crossterm::execute;
use ratatui_crossterm::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen,
};

use super::draw::draw;
use super::model::Model;
use super::theme::Theme;
use crate::sys::terminal;

/// The modes of the terminal before the view had it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The screen.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    theme: Theme,
}

impl Screen {
    /// Takes the terminal. A panic gives it back before its message is printed.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub fn take() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                give_back();
                before(info);
            }));
        });
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        let modes = match before.as_ref() {
            Some(modes) => modes.clone(),
            None => terminal::modes()?,
        };
        terminal::set_modes(&terminal::key_modes(&modes))?;
        *before = Some(modes);
        drop(before);
        execute!(
            io::stdout(),
            EnterAlternateScreen,
            Hide,
            Clear(ClearType::All)
        )?;
        Ok(Self {
            terminal: Terminal::new(CrosstermBackend::new(io::stdout()))?,
            theme: Theme::of(|name| std::env::var(name).ok()),
        })
    }

    /// Draws what has changed since the last time; everything when the size has changed.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub fn draw(&mut self, model: &Model) -> io::Result<()> {
        let theme = self.theme;
        self.terminal
            .draw(|frame| draw(model, theme, frame.buffer_mut()))?;
        Ok(())
    }

    /// Forgets what is on the screen, so that all is drawn again.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub fn forget(&mut self) -> io::Result<()> {
        self.terminal.clear()
    }
}

/// Gives the terminal back as it was, if the view has it. Another process that has it by now
/// is not disturbed.
pub fn give_back() {
    let Ok(mut before) = BEFORE.try_lock() else {
        return;
    };
    let Some(modes) = before.take() else {
        return;
    };
    drop(before);
    if !terminal::is_ours(&io::stdout()) {
        return;
    }
    // The modes first: they need no room in the buffer of the terminal.
    let _ = terminal::set_modes(&modes);
    let mut out = io::stdout();
    // A terminal without a second screen keeps what is on the only one.
    let _ = execute!(
        out,
        Clear(ClearType::All),
        MoveTo(0, 0),
        LeaveAlternateScreen,
        Show
    );
    let _ = out.flush();
}
