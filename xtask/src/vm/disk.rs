//! A guest with disks: a root file system with a service manager, and files for it. Writes
//! last until QEMU ends, and so outlive a start of the guest.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::guest::{Machine, command, file};
use super::initramfs::{self, Start};
use super::package::Package;

/// The modules that mount the disks. A kernel may have them built in.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// The files of the images of disks.
pub struct Disks<'a> {
    /// A root file system.
    pub root: &'a Path,
    /// Files that are copied over it at the first start.
    pub files: &'a Path,
}

/// A command that boots a kernel with disks. It ends when the guest switches itself off,
/// and prints what the guest writes to its second serial port.
pub fn boot(
    package: &Package,
    machine: Machine<'_>,
    limit: Duration,
    disks: &Disks,
) -> Result<Command> {
    let start = Start {
        init: include_str!("disk.sh"),
        modules: MODULES,
        script: "",
    };
    let initramfs = package.folder.join("initramfs-disk");
    fs::write(&initramfs, initramfs::build(package, &start)?)
        .with_context(|| format!("write {}", initramfs.display()))?;
    let mut qemu = command(machine, limit);
    qemu.args(["-machine", "q35", "-m", "1536"]);
    qemu.arg("-kernel").arg(package.vmlinuz());
    qemu.arg("-initrd").arg(&initramfs);
    let parameters = machine.accel.parameters();
    qemu.args(["-append", &format!("{parameters} net.ifnames=0")]);
    for (disk, options) in [(disks.root, "snapshot=on"), (disks.files, "readonly=on")] {
        let options = format!("if=virtio,format=raw,{options},file=");
        qemu.arg("-drive").arg(file(&options, disk));
    }
    qemu.arg("-serial").arg(file("file:", &package.console()));
    qemu.args(["-chardev", "file,id=out,path=/dev/stdout,append=on"])
        .args(["-serial", "chardev:out"]);
    Ok(qemu)
}
