//! The terminal of this process: its modes, and who may use it.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use nix::unistd::{getpgrp, read, tcgetpgrp};

/// Whether standard input and `output` are a terminal, and this process is in its
/// foreground: a process in the background that changes the terminal is stopped.
#[must_use]
pub fn is_ours(output: &impl IsTerminal) -> bool {
    io::stdin().is_terminal()
        && output.is_terminal()
        && tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

/// The modes of the terminal.
///
/// # Errors
///
/// Standard input is no terminal.
pub fn modes() -> io::Result<Termios> {
    Ok(tcgetattr(io::stdin())?)
}

/// Sets the modes of the terminal at once, without waiting for output.
///
/// # Errors
///
/// Standard input is no terminal.
pub fn set_modes(modes: &Termios) -> io::Result<()> {
    Ok(tcsetattr(io::stdin(), SetArg::TCSANOW, modes)?)
}

/// Modes for keys: no echo, no waiting for the end of a line, and a read never blocks.
/// Ctrl-C and Ctrl-Z are signals as before; Ctrl-\ and Ctrl-S do nothing.
#[must_use]
pub fn key_modes(before: &Termios) -> Termios {
    let mut modes = before.clone();
    modes.local_flags -= LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN;
    modes.input_flags -= InputFlags::IXON;
    for (index, value) in [
        (SpecialCharacterIndices::VMIN, 0),
        (SpecialCharacterIndices::VTIME, 0),
        (SpecialCharacterIndices::VQUIT, libc::_POSIX_VDISABLE),
    ] {
        modes.control_chars[index as usize] = value;
    }
    modes
}

/// An event while waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Neither a key nor a call.
    Nothing,
    /// The terminal has input.
    Keys,
    /// The terminal is gone.
    Closed,
}

/// Waits for keys of the terminal, unless it is not ours, or until `wake` can be read.
///
/// # Errors
///
/// When the kernel refuses to wait.
pub fn wait(is_ours: Ours, wake: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<Input> {
    let stdin = io::stdin();
    let mut files = vec![PollFd::new(wake, PollFlags::POLLIN)];
    if is_ours == Ours::Yes {
        files.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
    }
    let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
        timeout.try_into().unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut files, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let events = files.get(1).and_then(PollFd::revents);
    let events = events.unwrap_or(PollFlags::empty());
    Ok(if events.contains(PollFlags::POLLIN) {
        Input::Keys
    } else if events.is_empty() {
        Input::Nothing
    } else {
        Input::Closed
    })
}

/// Whether this process uses the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    /// This process draws on it and reads its keys.
    Yes,
    /// The shell, or another process, has it.
    No,
}

/// Reads what was typed; nothing after a hang-up.
///
/// # Errors
///
/// When the terminal is gone.
pub fn read_keys(buffer: &mut [u8]) -> io::Result<usize> {
    Ok(read(io::stdin(), buffer)?)
}

/// Stops this process as Ctrl-Z does without a handler, and returns when it goes on. The
/// kernel stops no process that no shell could continue.
///
/// # Errors
///
/// When the kernel refuses.
pub fn stop() -> io::Result<()> {
    let handler = default_stop()?;
    let stopped = raise(Signal::SIGTSTP);
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the handler was installed for this signal before.
    unsafe { sigaction(Signal::SIGTSTP, &handler) }?;
    Ok(stopped?)
}

/// Gives Ctrl-Z its usual effect, and returns what it did before.
///
/// # Errors
///
/// When the kernel refuses.
pub fn default_stop() -> io::Result<SigAction> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the default action runs no code of this process.
    let before = unsafe { sigaction(Signal::SIGTSTP, &default) }?;
    Ok(before)
}
