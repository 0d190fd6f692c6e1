//! The watcher: the process that keeps an active redirect in step with the host. This
//! module starts, notifies and stops it; its work is in
//! [`event_loop`](super::event_loop).

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::error::ControllerError;
use super::event::{Event, OnEvent};
use crate::ipc::client::{self, Presence, Question, Request, Role, Who};

/// The longest time that a process may take to start or to stop.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// The process that redirects in the foreground, if there is one. The lock reveals a
/// process that does not answer.
#[must_use]
pub fn foreground() -> Option<Who> {
    let who = client::ask(Request::Who).ok()??;
    (who.role == Role::Foreground).then_some(who)
}

/// Stops the redirect of a process in the foreground, which drains first.
///
/// # Errors
///
/// [`ControllerError::NotStopped`], or the process does not answer.
pub fn stop_foreground(pid: u32) -> Result<(), ControllerError> {
    let ask = ControllerError::io("ask the process in the foreground");
    let answer = client::status().map_err(ask)?;
    let drain_timeout = answer.map_or(Duration::ZERO, |answer| answer.settings.drain_timeout.0);
    client::ask(Request::Stop)
        .map_err(ControllerError::io("stop the process in the foreground"))?;
    if client::wait_for(Presence::Gone, drain_timeout + LONGEST) {
        Ok(())
    } else {
        Err(ControllerError::NotStopped(pid))
    }
}

/// A watcher that has been notified to read the state again, which it does once the lock
/// is free.
#[derive(Debug)]
pub struct Notified(io::Result<Option<Question>>);

/// Notifies the watcher that the state changes, and does not wait.
#[must_use]
pub fn notify() -> Notified {
    Notified(client::send(Request::Changed))
}

impl Notified {
    /// Waits for the watcher's answer. Must be called without the lock.
    pub fn wait(self) {
        let answer = self
            .0
            .and_then(|asked| asked.map_or(Ok(()), Question::wait));
        if let Err(error) = answer {
            log::warn!("the watcher process does not answer: {error}");
        }
    }
}

/// The treatment of a watcher that does not stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stubborn {
    /// The watcher is left alone.
    Leave,
    /// The watcher is killed.
    Kill,
}

/// Whether no process watches the redirect.
#[must_use]
pub fn is_missing() -> bool {
    matches!(client::pid(), Ok(None))
}

/// Stops the watcher, if there is one.
pub fn stop(stubborn: Stubborn, on_event: OnEvent<'_>) {
    let Ok(Some(pid)) = client::pid() else {
        return;
    };
    if let Err(error) = client::ask(Request::Stop) {
        log::warn!("process {pid} does not answer: {error}");
    }
    if !client::wait_for(Presence::Gone, LONGEST) && stubborn == Stubborn::Kill {
        on_event(Event::Killed(pid));
        let process = nix::unistd::Pid::from_raw(pid);
        if let Err(errno) = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL) {
            log::warn!("cannot kill process {pid}: {errno}");
        }
        let _ = client::wait_for(Presence::Gone, LONGEST);
    }
}

/// Starts a watcher, unless one runs that is this very program. A watcher of another
/// version is stopped first.
///
/// # Errors
///
/// The program cannot be started.
pub fn start(on_event: OnEvent<'_>) -> Result<(), ControllerError> {
    use std::os::unix::process::CommandExt as _;
    if let Ok(Some(pid)) = client::pid() {
        if is_this_program(pid) {
            notify().wait();
            return Ok(());
        }
        stop(Stubborn::Kill, on_event);
    }
    let program =
        std::env::current_exe().map_err(ControllerError::io("find the path of this program"))?;
    Command::new(program)
        .arg("watch")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Ctrl-C is for the command, not for what it leaves behind.
        .process_group(0)
        .spawn()
        .map_err(ControllerError::io("start the watcher process"))?;
    if !client::wait_for(Presence::Answers, LONGEST) {
        on_event(Event::WatcherIsSlow);
    }
    Ok(())
}

fn is_this_program(pid: i32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let file = |path: &str| {
        std::fs::metadata(path)
            .ok()
            .map(|file| (file.dev(), file.ino()))
    };
    let own = file("/proc/self/exe");
    own.is_some() && own == file(&format!("/proc/{pid}/exe"))
}
