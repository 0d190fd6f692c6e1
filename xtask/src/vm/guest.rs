//! A guest: a kernel and a script under QEMU.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::accel::Accel;
use super::card::Card;
use super::initramfs::{self, Start};
use super::package::Package;
use super::qemu::Qemu;

/// Modules that the tests use, and that the kernel does not load on demand.
const MODULES: &str = "br_netfilter tun";

/// The modules that mount the host's files. A kernel may have them built in.
const MOUNT_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];

/// The hardware of a guest.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// The emulator.
    pub qemu: &'a Qemu,
    /// The processors.
    pub accel: &'a Accel,
    /// The models of network cards; there are two of each, wired to each other.
    pub cards: &'a [Card],
}

/// A command that boots a kernel and runs a script in it.
pub fn boot(
    package: &Package,
    machine: Machine<'_>,
    limit: Duration,
    script: &str,
) -> Result<Command> {
    let drivers: Vec<_> = machine.cards.iter().map(|card| card.driver()).collect();
    let drivers = drivers.join(" ");
    let script = format!(
        "exec </dev/null >/dev/vport0p1 2>&1\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export HOME=/root TMPDIR=/run/tmp\n\
         modprobe -a {MODULES} {drivers}\n\
         {script}\n\
         echo o >/proc/sysrq-trigger\n\
         sleep 60\n"
    );
    let initramfs = package.folder.join("initramfs");
    let start = Start {
        init: include_str!("init.sh"),
        modules: MOUNT_MODULES,
        script: &script,
    };
    fs::write(&initramfs, initramfs::build(package, &start)?)
        .with_context(|| format!("write {}", initramfs.display()))?;

    let mut qemu = command(machine, limit);
    qemu.args(["-machine", "q35", "-no-reboot", "-m", "3072"]);
    qemu.arg("-kernel").arg(package.vmlinuz());
    qemu.arg("-initrd").arg(&initramfs);
    qemu.args(["-append", machine.accel.parameters()]);
    qemu.arg("-serial").arg(file("file:", &package.console()));
    // A chardev of type stdio would count as closed without a writer. Without
    // append, QEMU would empty a file that stdout was redirected to.
    qemu.args(["-device", "virtio-serial-pci"])
        .args(["-chardev", "file,id=out,path=/dev/stdout,append=on"])
        .args(["-device", "virtserialport,chardev=out"])
        .args([
            "-fsdev",
            "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        ])
        .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    for (number, card) in (0..).zip(machine.cards) {
        qemu.args(card.pair(number));
    }
    Ok(qemu)
}

/// QEMU with its processors.
pub fn command(machine: Machine<'_>, limit: Duration) -> Command {
    let mut qemu = Command::new("timeout");
    // In the foreground, so that Ctrl-C reaches the guest.
    qemu.args(["--foreground", "--kill-after=10"])
        .arg(limit.as_secs().to_string());
    machine.qemu.add_to(&mut qemu);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(machine.accel.args());
    qemu
}

/// An argument of QEMU that ends with a path.
pub fn file(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}
