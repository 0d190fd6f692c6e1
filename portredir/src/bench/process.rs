//! Programs that the benchmark starts. The guard of each kills it, by its handle, when
//! dropped; the kernel kills it when the benchmark dies before.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::Pid;
use serde::Serialize;

use crate::bench::namespace::Namespace;

/// The longest time that a real-time process may run without sleep, in microseconds; then
/// the kernel ends it.
const RT_TIME_US: u64 = 5_000_000;

/// The scheduling of the programs that take part in the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Scheduling {
    /// The one processor that they share: then nothing waits for another one to wake, and
    /// the time of an operation is its whole cost.
    pub cpu: usize,
    /// Whether they run under `SCHED_FIFO`; otherwise at nice -20.
    pub is_realtime: bool,
}

impl Scheduling {
    /// Takes the last processor, moves this thread off it, and checks whether real-time
    /// priorities are allowed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to report the processors.
    pub fn choose() -> anyhow::Result<Self> {
        let this = Pid::from_raw(0);
        let mut others = sched_getaffinity(this).context("read which processors we may use")?;
        let is_set = |cpu: &usize| others.is_set(*cpu) == Ok(true);
        let cpus: Vec<_> = (0..CpuSet::count()).filter(is_set).collect();
        let cpu = *cpus.last().context("find a processor")?;
        if cpus.len() > 1 {
            others.unset(cpu).context("leave a processor out")?;
            sched_setaffinity(this, &others).context("leave a processor to the traffic")?;
        }
        // All programs that we start inherit this.
        setrlimit(Resource::RLIMIT_RTTIME, RT_TIME_US, RT_TIME_US).context("set RLIMIT_RTTIME")?;
        let probe = Command::new("chrt")
            .args(["-f", "50", "true"])
            .stderr(Stdio::null())
            .status();
        Ok(Self {
            cpu,
            is_realtime: probe.is_ok_and(|status| status.success()),
        })
    }

    /// The words before a command.
    fn words(self) -> Vec<String> {
        let cpu = self.cpu.to_string();
        let words: &[&str] = if self.is_realtime {
            &["taskset", "-c", &cpu, "chrt", "-f", "50"]
        } else {
            &["taskset", "-c", &cpu, "nice", "-n", "-20"]
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }
}

/// A running program; its output on stderr goes to a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    err: PathBuf,
}

/// The place and the manner to start a program.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The network namespace of the program; `None` for ours.
    pub namespace: Option<&'a Namespace>,
    /// The scheduling; `None` for a program that takes no part in the traffic.
    pub scheduling: Option<Scheduling>,
    /// The cgroup of the program; `None` for ours.
    pub cgroup: Option<&'a Path>,
    /// The working directory of the program, which also takes its output.
    pub dir: &'a Path,
    /// Whether we write its standard input and read its standard output.
    pub is_piped: bool,
}

impl Launch<'_> {
    /// Starts a program.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn start(self, args: &[&str]) -> anyhow::Result<Process> {
        let ourselves = ourselves();
        let program = if args[0] == OURSELVES {
            &ourselves
        } else {
            args[0]
        };
        let name = args[0].to_owned();
        // Each program has its own file: an earlier one's output would pass for this
        // one's.
        let number = fs::read_dir(self.dir).map_or(0, Iterator::count);
        let err = self.dir.join(format!("{number}-{name}.err"));
        let to = File::create(&err).with_context(|| format!("create {}", err.display()))?;
        let pipe = || {
            if self.is_piped {
                Stdio::piped()
            } else {
                Stdio::null()
            }
        };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(cgroup) = self.cgroup {
            // The shell enters the cgroup before the program opens a socket, which
            // belongs to the cgroup of that time.
            command.args(["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""]);
            command.arg(cgroup.join("cgroup.procs"));
        }
        command
            .args(self.scheduling.map(Scheduling::words).unwrap_or_default())
            .arg(program)
            .args(&args[1..])
            .current_dir(self.dir)
            .env_remove("RUST_LOG")
            .stdin(pipe())
            .stdout(pipe())
            .stderr(to)
            // Ctrl-C is for us alone: we end the others in order.
            .process_group(0);
        let child = match self.namespace {
            Some(namespace) => namespace.enter(|| command.spawn())?,
            None => command.spawn(),
        };
        let child = child.with_context(|| format!("start {name} by setpriv"))?;
        Ok(Process { name, child, err })
    }
}

impl Process {
    /// The process ID of the program.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The standard input and output of the program, once.
    ///
    /// # Panics
    ///
    /// When they were taken before.
    pub fn pipes(&mut self) -> (ChildStdin, ChildStdout) {
        let stdin = self.child.stdin.take();
        let stdout = self.child.stdout.take();
        stdin.zip(stdout).expect("they were not taken before")
    }

    /// The end of what the program has printed on stderr so far.
    #[must_use]
    pub fn said(&self) -> String {
        let bytes = fs::read(&self.err).unwrap_or_default();
        let end = &bytes[bytes.len().saturating_sub(1000)..];
        String::from_utf8_lossy(end).trim().to_owned()
    }

    /// Waits until a condition is true.
    ///
    /// # Errors
    ///
    /// When the program ends before, or the wait takes too long; with the program's
    /// output.
    pub fn wait_until(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&Self) -> bool,
    ) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(15);
        let start = Instant::now();
        loop {
            if is_so(self) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().context("ask for the status")? {
                // The last words may have come since.
                if is_so(self) {
                    return Ok(());
                }
                bail!(
                    "{} ended ({status}) before it {what}: {}",
                    self.name,
                    self.said()
                );
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "{} has not {what} in {PATIENCE:?}: {}",
                    self.name,
                    self.said()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first argument that stands for this program.
pub const OURSELVES: &str = "portredir";

/// The path of this program, as the kernel knows it: also valid after its file was
/// replaced.
fn ourselves() -> String {
    format!("/proc/{}/exe", std::process::id())
}
