//! A terminal of a host, with a shell in it, by a tmux server of its own.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::lab::Lab;
use crate::lab::process::{Process, wait_for};

/// A terminal; its server and the shell end when it is dropped.
pub struct Terminal {
    socket: PathBuf,
    server: Process,
}

/// The end of the line that the shell prints before it waits for a command.
const PROMPT: &str = "ready> ";

impl Terminal {
    /// Opens a terminal of this size on the host of a lab; the shell has these variables.
    pub fn open(lab: &Lab, (width, height): (u16, u16), variables: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = lab.dir.0.join(format!("tmux{number}"));
        let path = socket.to_str().expect("text");
        // `-D`: the server is our own process, and dies with us.
        let server = [
            "env",
            "-u",
            "NO_COLOR",
            "LC_ALL=C.UTF-8",
            "tmux",
            "-S",
            path,
        ];
        let server = [&server[..], &["-f", "/dev/null", "-D"]].concat();
        let server = lab.host.start(&server);
        let terminal = Self { socket, server };
        wait_for("the tmux server", || terminal.socket.exists().then_some(()));
        let (width, height) = (width.to_string(), height.to_string());
        let mut args = vec!["new-session", "-d", "-x", &width, "-y", &height];
        let prompt = format!("PS1={PROMPT}");
        args.extend(["-e", &prompt, "bash", "--norc", "--noprofile", "-i"]);
        terminal.tmux(&args);
        terminal.wait_for("a prompt", |screen| screen.ends_with(PROMPT.trim_end()));
        // Not by tmux, which sets TERM itself.
        for variable in variables {
            terminal.ask(&format!("export {variable}"));
        }
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        // `-N`: a command must not start a server by itself, in another namespace.
        let tmux = tmux.args(["-N", "-u", "-S"]).arg(&self.socket).args(args);
        let output = tmux.output().expect("run tmux");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Types a line.
    pub fn enter(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press("Enter");
    }

    /// Types keys, by their names in tmux(1).
    pub fn press(&self, keys: &str) {
        let mut args = vec!["send-keys"];
        args.extend(keys.split(' '));
        self.tmux(&args);
    }

    /// The content of the screen; lines without trailing spaces.
    pub fn screen(&self) -> String {
        let screen = self.tmux(&["capture-pane", "-p"]);
        screen.trim_end().to_owned()
    }

    /// The content of the screen, with the escape sequences of its colours.
    pub fn colored_screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// The content of the screen, now and before.
    pub fn history(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J", "-S", "-"])
    }

    /// Changes the size.
    pub fn resize(&self, (width, height): (u16, u16)) {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]);
    }

    /// Waits for a screen that is so.
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(what, || {
                last = self.screen();
                is_it(&last).then(|| last.clone())
            })
        }));
        found.unwrap_or_else(|_| panic!("no {what} on the screen:\n{last}"))
    }

    /// Waits for words on the screen.
    pub fn wait_for_words(&self, words: &str) -> String {
        self.wait_for(words, |screen| screen.contains(words))
    }

    /// Runs a command of the shell to its end, and returns what it left on the screen, in
    /// one line.
    pub fn ask(&self, command: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.press("C-l");
        self.enter(&format!("{command}; echo over {number}"));
        let end = format!("over {number}");
        let screen = self.wait_for("the end of a command", |screen| {
            screen.lines().any(|line| line == end)
        });
        let begin = format!("{PROMPT}{command}");
        let lines = screen.lines().skip_while(|line| !line.starts_with(&begin));
        let lines = lines.skip(1).take_while(|line| *line != end);
        lines.collect::<Vec<_>>().join(" ")
    }

    /// The modes of the terminal.
    pub fn modes(&self) -> String {
        self.ask("stty -a")
    }

    /// Closes the terminal, as a window that is closed.
    pub fn close(&self) {
        self.tmux(&["kill-session"]);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.server.kill_if_running();
    }
}
