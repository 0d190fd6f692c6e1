//! Programs that a test runs. Each is killed, by its handle, when its guard is
//! dropped, and by the kernel when the test's thread dies before.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A duration, multiplied on a slow machine such as an emulated one:
/// `TEST_SLOWNESS` is the factor.
pub fn slow(time: Duration) -> Duration {
    static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
        let text = std::env::var("TEST_SLOWNESS");
        text.map_or(1, |text| text.parse().expect("TEST_SLOWNESS is a number"))
    });
    time * *SLOWNESS
}

thread_local! {
    /// How long this thread's test waits for one thing.
    pub static PATIENCE: Cell<Duration> = const { Cell::new(Duration::from_secs(15)) };
    /// When this thread's test has to be done.
    pub static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
    /// The notes that a failed test prints beside its panic.
    pub static NOTES: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Adds to what is printed should this test fail.
pub fn note(text: &str) {
    NOTES.with_borrow_mut(|notes| {
        notes.push_str(text);
        notes.push('\n');
    });
}

/// Polls until `get` has something.
pub fn wait_for<T>(what: &str, get: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE.get(), what, get)
}

/// Polls as [`wait_for`] does, for no longer than `limit`.
pub fn wait_within<T>(limit: Duration, what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let limit = slow(limit);
    let start = Instant::now();
    loop {
        // Also once after the limit: the machine may have slept, not the thing.
        let is_over = start.elapsed() > limit || is_past_deadline();
        if let Some(value) = get() {
            return value;
        }
        assert!(!is_over, "waited {:?} for {what}", start.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_past_deadline() -> bool {
    DEADLINE
        .get()
        .is_some_and(|deadline| Instant::now() > deadline)
}

/// A running program; what it prints goes to files.
pub struct Process {
    name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    /// Starts a program in the current network namespace. `dir` takes its
    /// output.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        let name = Path::new(args[0]).file_name().expect("a name");
        let name = name.to_string_lossy().into_owned();
        let number = fs::read_dir(dir).expect("the directory").count();
        let out = dir.join(format!("{number}-{name}.out"));
        let err = dir.join(format!("{number}-{name}.err"));
        let create = |path| File::create(path).expect("create a file for output");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(create(&out))
            .stderr(create(&err))
            .env_remove("RUST_LOG")
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self {
            name,
            child,
            out,
            err,
        }
    }

    /// The process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The standard output so far.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.out_bytes()).into_owned()
    }

    /// The standard output so far, which need not be text.
    pub fn out_bytes(&self) -> Vec<u8> {
        fs::read(&self.out).expect("read the output")
    }

    /// The standard error so far.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).expect("read the output")).into_owned()
    }

    /// Waits until it says that it is ready, on either stream.
    pub fn wait_for_words(&mut self, words: &str) {
        wait_for(&format!("{} to say `{words}`", self.name), || {
            let is_there = self.err().contains(words) || self.out().contains(words);
            let status = self.child.try_wait().expect("ask for the status");
            assert!(
                is_there || status.is_none(),
                "{} ended before it said `{words}`: {status:?}",
                self.name
            );
            is_there.then_some(())
        });
    }

    /// The links of eBPF programs that it holds.
    pub fn links(&self) -> BTreeSet<u32> {
        let infos = fs::read_dir(format!("/proc/{}/fdinfo", self.child.id())).expect("fdinfo");
        let infos = infos.filter_map(|info| fs::read_to_string(info.ok()?.path()).ok());
        infos
            .filter_map(|info| {
                let id = info
                    .lines()
                    .find_map(|line| line.strip_prefix("link_id:"))?;
                Some(id.trim().parse().expect("a number"))
            })
            .collect()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("send a signal");
    }

    /// How it ended, if it did.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for the status")
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for(&format!("{} to end", self.name), || {
            self.child.try_wait().expect("ask for the status")
        })
    }

    /// Kills the process by SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.wait();
    }

    /// Kills the process by SIGKILL unless it has ended.
    pub fn kill_if_running(&mut self) {
        let _ = self.child.kill();
        self.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for (stream, path) in [("stdout", &self.out), ("stderr", &self.err)] {
                let bytes = fs::read(path).unwrap_or_default();
                let end = &bytes[bytes.len().saturating_sub(4000)..];
                if !end.is_empty() && !bytes.contains(&0) {
                    let end = String::from_utf8_lossy(end);
                    note(&format!("--- {stream} of {}:\n{end}", self.name));
                }
            }
        }
    }
}
