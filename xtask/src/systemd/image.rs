//! The disks of the guest, below `target/systemd`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::root::root as workspace;
use crate::vm::{Vm, mirror};

/// The packages that a small Debian lacks: a service manager, and programs of the checks.
const PACKAGES: &str = "systemd,systemd-sysv,iproute2,curl,python3,kmod,udev,procps,dbus,libpam-systemd,firewalld,\
                        nftables,iptables,busybox-static";

/// The services that only some checks start.
const SERVICES: [&str; 4] = [
    "firewalld.service",
    "docker.service",
    "docker.socket",
    "containerd.service",
];

/// The files of the checks.
const FILES: [(&str, &str); 4] = [
    ("load.py", include_str!("lab/load.py")),
    ("network.sh", include_str!("lab/network.sh")),
    ("probe.py", include_str!("lab/probe.py")),
    ("server.py", include_str!("lab/server.py")),
];

/// The units that start them.
const UNITS: [(&str, &str); 4] = [
    ("network", include_str!("lab/lab-network.service")),
    ("online", include_str!("lab/lab-online.service")),
    ("probe", include_str!("lab/lab-probe.service")),
    ("server", include_str!("lab/lab-server.service")),
];

fn folder(suite: &str) -> Result<PathBuf> {
    let folder = workspace().join("target/systemd").join(suite);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// The image of a root file system of a suite with some packages more, which is made once.
pub fn root((suite, more): (&str, &str), vm: &Vm) -> Result<PathBuf> {
    let folder = folder(suite)?;
    let image = folder.join(format!("{}.img", vm.release()));
    if image.exists() {
        return Ok(image);
    }
    let tree = folder.join("root");
    let part = folder.join("part.img");
    let remove = || process::run(process::as_root("rm").arg("-rf").args([&tree, &part]));
    remove()?;
    let mut debootstrap = process::as_root(process::find("debootstrap").context("debootstrap")?);
    debootstrap
        .args(["--variant=minbase", "--include"])
        .args([&format!("{PACKAGES},{more}"), suite])
        .arg(&tree)
        .arg(mirror()?);
    process::run(&mut debootstrap)?;
    let mut disable = process::as_root("chroot");
    disable.arg(&tree).args(["systemctl", "disable"]);
    process::run(disable.args(SERVICES))?;
    let modules = tree.join("usr/lib/modules");
    process::run(process::as_root("mkdir").arg("-p").arg(&modules))?;
    let mut copy = process::as_root("cp");
    process::run(copy.arg("-a").args([vm.modules(), modules]))?;
    process::run(
        process::as_root(process::find("mkfs.ext4").context("find mkfs.ext4")?)
            .args(["-q", "-F", "-d"])
            .args([&tree, &part])
            .arg("3G"),
    )?;
    process::run(process::as_root("mv").args([&part, &image]))?;
    remove()?;
    Ok(image)
}

/// The image of a disk with the package and the checks.
pub fn lab(suite: &str, package: &Path) -> Result<PathBuf> {
    let folder = folder(suite)?;
    let tree = folder.join("files");
    if tree.exists() {
        fs::remove_dir_all(&tree).context("empty the folder of the checks")?;
    }
    let lab = tree.join("lab");
    let units = tree.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    for folder in [&lab, &wanted] {
        fs::create_dir_all(folder).context("create the folder of the checks")?;
    }
    fs::copy(package, lab.join("portredir.deb")).context("copy the package")?;
    for (name, text) in FILES {
        fs::write(lab.join(name), text).with_context(|| format!("write {name}"))?;
    }
    for (name, text) in UNITS {
        let name = format!("lab-{name}.service");
        fs::write(units.join(&name), text).with_context(|| format!("write {name}"))?;
        symlink(Path::new("..").join(&name), wanted.join(&name)).context("enable a unit")?;
    }
    let drop_in = units.join("portredir.service.d");
    fs::create_dir_all(&drop_in).context("create a folder for a drop-in")?;
    fs::write(drop_in.join("slow.conf"), include_str!("lab/slow.conf")).context("write it")?;
    let image = folder.join("files.img");
    let _ = fs::remove_file(&image);
    process::run(
        Command::new(process::find("mkfs.ext4").context("find mkfs.ext4")?)
            .args(["-q", "-F", "-d"])
            .args([&tree, &image])
            .arg("96M"),
    )?;
    Ok(image)
}
