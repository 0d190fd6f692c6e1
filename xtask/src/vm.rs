//! Other kernels: Debian's packages, booted by QEMU, with the files of this host
//! to read. What the guest writes stays in its memory.

mod accel;
mod archive;
mod initramfs;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use self::accel::Accel;
use self::package::Package;
use crate::root::root;

/// Modules that the tests use, and that nothing loads when it is asked for.
const MODULES: &str = "virtio_net br_netfilter tun";

/// A kernel that can be booted.
pub struct Vm {
    package: Package,
    accel: Accel,
}

impl Vm {
    /// The names of two network cards in the guest that are wired to each other.
    pub const NICS: &str = "eth0,eth1";

    /// How much more time things may take in a guest that is emulated, also beside
    /// other work.
    pub const SLOWNESS: u32 = 20;

    /// Brings the newest kernel of a series, as `6.1`, and finds out how to boot
    /// it here.
    pub fn new(series: &str) -> Result<Self> {
        let package = Package::provide(series)?;
        let accel = Accel::find(&package)?;
        println!("kernel {}: {accel}", package.release);
        Ok(Self { package, accel })
    }

    /// As `uname -r` prints it.
    pub fn release(&self) -> &str {
        &self.package.release
    }

    /// Whether its CPUs are emulated, so that all takes ten times as long.
    pub fn is_emulated(&self) -> bool {
        matches!(self.accel, Accel::Tcg { .. })
    }

    /// A command that runs a program as root in a new guest, whose output becomes
    /// its own, and that ends the guest after some time. `env` is as in a shell:
    /// `NAME=value`.
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
        boot(&self.package, self.accel.name(), limit, &script)
    }

    /// The last that the kernel said, for when a guest died.
    pub fn last_words(&self) -> String {
        let console = fs::read(self.package.console()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<_> = console.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// A word of a shell's command.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A command that boots a kernel and runs a script in it.
fn boot(package: &Package, accel: &str, limit: Duration, script: &str) -> Result<Command> {
    let script = format!(
        "exec </dev/null >/dev/vport0p1 2>&1\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export HOME=/root TMPDIR=/run/tmp\n\
         modprobe -a {MODULES}\n\
         {script}\n\
         echo o >/proc/sysrq-trigger\n\
         sleep 60\n"
    );
    let initramfs = package.folder.join("initramfs");
    fs::write(&initramfs, initramfs::build(package, &script)?)
        .with_context(|| format!("write {}", initramfs.display()))?;

    let mut qemu = Command::new("timeout");
    // In the foreground, so that Ctrl-C reaches it.
    qemu.args(["--foreground", "--kill-after=10"])
        .arg(limit.as_secs().to_string())
        .arg("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-m", "3072", "-smp", "2"])
        .args(["-accel", accel]);
    let mut append = String::from("console=ttyS0 quiet panic=-1");
    if accel == "tcg" {
        // Left out is what is slow to emulate and tests nothing of ours: string
        // instructions, which go byte by byte (112 is X86_FEATURE_REP_GOOD), a
        // fifth level of pages, memory that is cleared beforehand.
        qemu.args(["-cpu", "max,-erms,-fsrm,-la57"]);
        append += " mitigations=off init_on_alloc=0 clearcpuid=112";
    } else {
        qemu.args(["-cpu", "max"]);
    }
    qemu.arg("-kernel").arg(package.vmlinuz());
    qemu.arg("-initrd").arg(&initramfs);
    qemu.args(["-append", &append]);
    qemu.arg("-serial").arg(file("file:", &package.console()));
    // Not stdio, which counts as gone when nobody writes to it. Appended, because
    // QEMU would empty a file that stdout was redirected to.
    qemu.args(["-device", "virtio-serial-pci"])
        .args(["-chardev", "file,id=out,path=/dev/stdout,append=on"])
        .args(["-device", "virtserialport,chardev=out"])
        .args([
            "-fsdev",
            "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        ])
        .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    // Two NICs that are wired to each other.
    for nic in ["0", "1"] {
        qemu.arg("-netdev")
            .arg(format!("hubport,id=n{nic},hubid=0"));
        let device = format!("virtio-net-pci,netdev=n{nic},mac=52:54:00:00:00:0{nic}");
        qemu.args(["-device", &device]);
    }
    Ok(qemu)
}

fn file(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

/// Where kernels are kept.
fn folder(series: &str) -> PathBuf {
    root().join("target/kernels").join(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_what_was_quoted() {
        let word = "it's $HOME; \"x\"";
        let echo = Command::new("sh")
            .args(["-c", &format!("printf %s {}", quote(word))])
            .output()
            .expect("sh");
        assert_eq!(String::from_utf8_lossy(&echo.stdout), word);
    }
}
