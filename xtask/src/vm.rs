//! Virtual machines with other kernels. QEMU boots Debian's kernel packages; the
//! guest reads the files of this host and writes to memory alone.

mod accel;
mod archive;
mod card;
mod disk;
mod guest;
mod initramfs;
mod package;
mod qemu;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use self::accel::Accel;
pub use self::archive::mirror;
pub use self::card::Card;
pub use self::disk::Disks;
use self::guest::Machine;
use self::package::Package;
use self::qemu::Qemu;

/// The time limit of a trial boot. A boot takes two seconds, nested in another
/// guest ten.
const PATIENCE: Duration = Duration::from_secs(20);

/// A kernel that can be booted.
pub struct Vm {
    package: Package,
    accel: Accel,
    qemu: Qemu,
    cards: Vec<Card>,
}

impl Vm {
    /// The factor for time limits in an emulated guest, even on a busy host.
    pub const SLOWNESS: u32 = 20;

    /// Provides the newest kernel of a series, for example `6.1`, and finds out how
    /// this machine can boot it. There are two network cards of each of these models.
    pub fn new(series: &str, cards: &[Card]) -> Result<Self> {
        let qemu = Qemu::with(cards)?;
        let package = Package::provide(series)?;
        let accel = Accel::find(|accel| {
            let machine = Machine {
                qemu: &qemu,
                accel,
                cards: &[],
            };
            guest::boot(
                &package,
                machine,
                PATIENCE,
                &format!("echo {}", Accel::PROOF),
            )
        })?;
        Ok(Self {
            cards: cards.to_owned(),
            ..Self::of(package, accel, qemu)
        })
    }

    /// Provides the newest kernel of a series for a guest whose clock counts instructions.
    pub fn counting(series: &str) -> Result<Self> {
        let package = Package::provide(series)?;
        Ok(Self::of(package, Accel::Counted, Qemu::installed()))
    }

    fn of(package: Package, accel: Accel, qemu: Qemu) -> Self {
        println!("kernel {}: {accel}", package.release);
        Self {
            package,
            accel,
            qemu,
            cards: Vec::new(),
        }
    }

    const fn machine(&self) -> Machine<'_> {
        Machine {
            qemu: &self.qemu,
            accel: &self.accel,
            cards: self.cards.as_slice(),
        }
    }

    /// The names of the network cards in the guest, separated by commas.
    pub fn nics(&self) -> String {
        let names = (0..2 * self.cards.len()).map(|number| format!("eth{number}"));
        names.collect::<Vec<_>>().join(",")
    }

    /// The release of the kernel, as `uname -r` prints it.
    pub fn release(&self) -> &str {
        &self.package.release
    }

    /// Whether the CPUs of the guest are emulated, which takes ten times as long.
    pub fn is_emulated(&self) -> bool {
        self.accel.is_emulated()
    }

    /// A command that runs a program as root in a new guest and passes on the
    /// program's output. The guest ends after `limit`. Each word of `env` has the
    /// form `NAME=value`.
    pub fn command(
        &self,
        limit: Duration,
        folder: &Path,
        env: &[String],
        program: &[&str],
    ) -> Result<Command> {
        let words: Vec<_> = env.iter().map(|word| quote(word)).collect();
        let program: Vec<_> = program.iter().map(|word| quote(word)).collect();
        let script = format!(
            "cd {} && env {} {}",
            quote(&folder.display().to_string()),
            words.join(" "),
            program.join(" ")
        );
        guest::boot(&self.package, self.machine(), limit, &script)
    }

    /// The folder of the modules of the kernel.
    pub fn modules(&self) -> PathBuf {
        self.package.modules()
    }

    /// A command that starts a root file system, and prints what is written to the
    /// second serial port.
    pub fn start(&self, limit: Duration, disks: &Disks) -> Result<Command> {
        disk::boot(&self.package, self.machine(), limit, disks)
    }

    /// The last kernel messages, for a guest that ended early.
    pub fn last_words(&self) -> String {
        let console = fs::read(self.package.console()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<_> = console.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// A word, quoted for a shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_reads_the_quoted_word() {
        let word = "it's $HOME; \"x\"";
        let echo = Command::new("sh")
            .args(["-c", &format!("printf %s {}", quote(word))])
            .output()
            .expect("sh");
        assert_eq!(String::from_utf8_lossy(&echo.stdout), word);
    }
}
