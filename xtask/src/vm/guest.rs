//! A guest: a kernel and a script under QEMU.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::initramfs::{self, Start};
use super::package::Package;

/// Modules that the tests use, and that the kernel does not load on demand.
const MODULES: &str = "virtio_net br_netfilter tun";

/// The modules that mount the host's files. A kernel may have them built in.
const MOUNT_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];

/// A command that boots a kernel and runs a script in it.
pub fn boot(package: &Package, accel: &str, limit: Duration, script: &str) -> Result<Command> {
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
    let start = Start {
        init: include_str!("init.sh"),
        modules: MOUNT_MODULES,
        script: &script,
    };
    fs::write(&initramfs, initramfs::build(package, &start)?)
        .with_context(|| format!("write {}", initramfs.display()))?;

    let (mut qemu, append) = machine(accel, limit);
    qemu.args(["-no-reboot", "-m", "3072"]);
    qemu.arg("-kernel").arg(package.vmlinuz());
    qemu.arg("-initrd").arg(&initramfs);
    qemu.args(["-append", &append]);
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
    // Two network cards that are wired to each other.
    for nic in ["0", "1"] {
        qemu.arg("-netdev")
            .arg(format!("hubport,id=n{nic},hubid=0"));
        let device = format!("virtio-net-pci,netdev=n{nic},mac=52:54:00:00:00:0{nic}");
        qemu.args(["-device", &device]);
    }
    Ok(qemu)
}

/// QEMU with a processor, and the parameters of the kernel.
pub fn machine(accel: &str, limit: Duration) -> (Command, String) {
    let mut qemu = Command::new("timeout");
    // In the foreground, so that Ctrl-C reaches the guest.
    qemu.args(["--foreground", "--kill-after=10"])
        .arg(limit.as_secs().to_string())
        .arg("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-smp", "2"])
        .args(["-accel", accel]);
    let mut append = String::from("console=ttyS0 quiet panic=-1");
    if accel == "tcg" {
        // These are slow to emulate and do not matter to the tests: string
        // instructions, which go byte by byte (112 is X86_FEATURE_REP_GOOD), a
        // fifth level of page tables, and memory that is cleared beforehand.
        qemu.args(["-cpu", "max,-erms,-fsrm,-la57"]);
        append += " mitigations=off init_on_alloc=0 clearcpuid=112";
    } else {
        qemu.args(["-cpu", "max"]);
    }
    (qemu, append)
}

/// An argument of QEMU that ends with a path.
pub fn file(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}
