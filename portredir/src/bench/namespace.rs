//! Network namespaces. A thread enters one, opens sockets or starts programs
//! there, and comes back; what it opened or started stays there.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};

/// The prefix of the names of namespaces, directories and cgroups; the process ID of
/// their maker comes next.
pub const PREFIX: &str = "portredir-bench-";

/// The directory in which `ip netns` keeps namespaces.
const DIR: &str = "/run/netns";

/// A network namespace, which is deleted when dropped, with its interfaces.
#[derive(Debug)]
pub struct Namespace {
    /// The name by which `ip netns` knows the namespace.
    pub name: String,
    file: File,
}

impl Namespace {
    /// Makes a namespace.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn new(name: String) -> anyhow::Result<Self> {
        run(Command::new("ip").args(["netns", "add", &name]), "")?;
        let file = File::open(Path::new(DIR).join(&name));
        // The namespace has to go also when this fails.
        let file = file.inspect_err(|_| delete(&name));
        let file = file.with_context(|| format!("open network namespace {name}"))?;
        Ok(Self { name, file })
    }

    /// Runs `f` with this thread in the namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> anyhow::Result<T> {
        struct Back(File);
        impl Drop for Back {
            fn drop(&mut self) {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("we came from there");
            }
        }
        let here = File::open("/proc/thread-self/ns/net").context("open our network namespace")?;
        let back = Back(here);
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {}", self.name))?;
        let result = f();
        drop(back);
        Ok(result)
    }

    /// The file that names the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    ///
    /// When the program fails; with its output on stderr.
    pub fn run(&self, command: &mut Command, input: &str) -> anyhow::Result<()> {
        self.enter(|| run(command, input))?
    }

    /// Sets values below `/proc/sys/net`; leaves out those that this kernel does not
    /// have.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a value.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> anyhow::Result<()> {
        self.enter(|| {
            for (key, value) in values {
                let path = Path::new("/proc/sys/net").join(key);
                if path.exists() {
                    fs::write(path, value).with_context(|| format!("set {key} to {value}"))?;
                }
            }
            Ok(())
        })?
    }

    /// Reads a file below `/proc/net`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn proc_net(&self, name: &str) -> anyhow::Result<String> {
        let path = Path::new("/proc/thread-self/net").join(name);
        let text = self.enter(|| fs::read_to_string(path))?;
        text.with_context(|| format!("read /proc/net/{name}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

fn delete(name: &str) {
    if let Err(error) = run(Command::new("ip").args(["netns", "del", name]), "") {
        log::warn!("{error:#}");
    }
}

/// Runs a program to its end.
///
/// # Errors
///
/// When the program fails; with its output on stderr.
pub fn run(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input reports that itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // The first line is enough of a long list of errors.
    let said = said.trim().lines().next().unwrap_or("no reason given");
    ensure!(output.status.success(), "{name}: {said}");
    Ok(())
}

/// A directory with a unique name that is deleted when dropped.
#[derive(Debug)]
pub struct Dir {
    /// The name: [`PREFIX`] and our process ID; also used for namespaces and cgroups.
    pub name: String,
    path: PathBuf,
}

impl Dir {
    /// Makes a directory among the temporary ones.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let random = fastrand::u16(..);
        let name = format!("{PREFIX}{}-{random:04x}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { name, path })
    }

    /// Makes a directory in this one.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn inner(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Whether a process has ended, or is dead and its parent has not yet waited for it.
fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    // The state comes after the name, which may contain anything.
    stat.map_or(true, |stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, state)| state.starts_with('Z'))
    })
}

/// The paths in a directory that belong to a run that is over.
#[must_use]
pub fn stale(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.split('-').next());
            pid.and_then(|pid| pid.parse().ok()).is_some_and(is_gone)
        })
        .map(|entry| entry.path())
        .collect()
}

/// The namespaces that a killed run has left behind.
#[must_use]
pub fn left_behind() -> Vec<String> {
    stale(Path::new(DIR))
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect()
}

/// Deletes one of the namespaces of [`left_behind`].
///
/// # Errors
///
/// When `ip` fails.
pub fn adopt_and_delete(name: &str, last: impl FnOnce(&Namespace)) -> anyhow::Result<()> {
    let file = File::open(Path::new(DIR).join(name));
    let file = file.with_context(|| format!("open network namespace {name}"));
    match file {
        Ok(file) => {
            let name = name.to_owned();
            last(&Namespace { name, file });
            Ok(())
        }
        Err(error) => {
            delete(name);
            Err(error)
        }
    }
}
