//! A real terminal for tests: a test runs again in a terminal of tmux, where it draws as the
//! program does, and the first run looks at the screen.

use std::env;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The variable that tells a test that it runs on the stage.
const STAGE: &str = "PORTREDIR_STAGE";

/// A terminal of tmux, which ends with this value.
pub struct Stage {
    server: Child,
    /// The folder of the socket, for files of the test.
    pub dir: TempDir,
}

/// Draws and waits, if this process runs in a terminal for this test.
pub fn play(test: &str, draw: impl FnOnce()) {
    if env::var(STAGE).is_ok_and(|stage| stage == test) {
        draw();
        // The end of the terminal ends this process.
        loop {
            std::thread::park();
        }
    }
}

/// The command that runs a test again, in a terminal.
pub fn again(test: &str) -> String {
    let program = env::current_exe().expect("the program of the tests");
    let program = program.display();
    // The tests know themselves by their paths without the name of the crate.
    let (_, path) = test.split_once("::").expect("a path");
    format!("{STAGE}={test} {program} --exact {path} --nocapture --quiet")
}

impl Stage {
    /// Opens a terminal of this size, which runs a command of the shell; `None`, with the
    /// reason printed, where there is no tmux.
    pub fn open((width, height): (u16, u16), command: &str) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("skipped: needs tmux");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = Command::new("tmux");
        // `-D`: the server is a child of this process, and stays in the foreground.
        let server = server
            .args(["-f", "/dev/null", "-D", "-S"])
            .arg(socket(&dir));
        let server = server.env_remove("NO_COLOR").env("LC_ALL", "C.UTF-8");
        let server = server.spawn().expect("start tmux");
        let stage = Self { server, dir };
        let (width, height) = (width.to_string(), height.to_string());
        let size = ["-x", &width, "-y", &height];
        let session = [&["new-session", "-d"][..], &size, &["sh", "-c", command]].concat();
        wait("the tmux server", || {
            let has_begun = tmux(&stage.dir).args(&session).output();
            has_begun.expect("run tmux").status.success().then_some(())
        });
        Some(stage)
    }

    /// Waits for words on the screen, and returns the screen with the sequences that colour
    /// its cells.
    pub fn wait_for_words(&self, words: &str) -> String {
        wait(words, || {
            let screen = self.ask(&["capture-pane", "-p"]);
            screen
                .contains(words)
                .then(|| self.ask(&["capture-pane", "-p", "-e"]))
        })
    }

    /// Asks tmux.
    pub fn ask(&self, args: &[&str]) -> String {
        let Output { stdout, .. } = tmux(&self.dir).args(args).output().expect("run tmux");
        String::from_utf8(stdout).expect("text")
    }
}

fn socket(dir: &TempDir) -> PathBuf {
    dir.path().join("tmux")
}

/// A command of tmux, which starts no server by itself.
fn tmux(dir: &TempDir) -> Command {
    let mut tmux = Command::new("tmux");
    tmux.args(["-N", "-u", "-S"]).arg(socket(dir));
    tmux
}

/// Waits for a value.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "no {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = tmux(&self.dir).arg("kill-server").output();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
