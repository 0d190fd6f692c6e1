//! The initramfs of a guest: the files it needs to mount those of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cpio::newc::Builder;

use super::package::Package;
use crate::process;

/// The beginning of a guest.
pub struct Start<'a> {
    /// The script that the kernel runs first.
    pub init: &'static str,
    /// The modules that `init` loads.
    pub modules: &'a [&'a str],
    /// The script that `init` ends with, where it ends with one.
    pub script: &'a str,
}

const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;

/// The archive of a guest.
pub fn build(package: &Package, start: &Start) -> Result<Vec<u8>> {
    let modules = package.modules();
    let busybox = process::find("busybox").context("find busybox")?;
    let folder = modules.display().to_string();
    let mut files = BTreeMap::from([
        ("init".to_owned(), start.init.as_bytes().to_vec()),
        ("bin/busybox".to_owned(), read(&busybox)?),
        ("run.sh".to_owned(), start.script.as_bytes().to_vec()),
        ("modules".to_owned(), folder.into_bytes()),
    ]);
    let place = |file: &str| format!("lib/modules/{}/{file}", package.release);
    let dependencies =
        fs::read_to_string(modules.join("modules.dep")).context("read modules.dep")?;
    for module in needed(&dependencies, start.modules)? {
        files.insert(place(unpacked(module)), unpack(&modules.join(module))?);
    }
    let dependencies = dependencies.replace(".ko.xz", ".ko");
    files.insert(place("modules.dep"), dependencies.into_bytes());
    // Packages from Linux 7 on have no such list.
    let builtin = fs::read(modules.join("modules.builtin")).unwrap_or_default();
    files.insert(place("modules.builtin"), builtin);
    archive(&files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The files of modules and of the modules that these depend on, by `modules.dep`.
fn needed<'a>(dependencies: &'a str, modules: &[&str]) -> Result<BTreeSet<&'a str>> {
    let mut files = BTreeSet::new();
    for line in dependencies.lines() {
        let (module, needed) = line.split_once(':').context("read modules.dep")?;
        let (_, file) = module.rsplit_once('/').unwrap_or(("", module));
        let (name, _) = file.split_once('.').context("read modules.dep")?;
        if modules.contains(&name) {
            files.extend(needed.split_whitespace().chain([module]));
        }
    }
    Ok(files)
}

/// The name of a module in the archive.
fn unpacked(module: &str) -> &str {
    module.strip_suffix(".xz").unwrap_or(module)
}

/// The content of a module. Not every busybox reads compressed modules.
fn unpack(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return read(path);
    }
    let mut xz = Command::new("xz");
    xz.arg("-dc").arg(path).stderr(Stdio::inherit());
    let output = xz.output().context("start xz")?;
    ensure!(output.status.success(), "{}", process::line(&xz));
    Ok(output.stdout)
}

/// Packs the files, and the folders that they and the mounts need.
fn archive(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    let mounts = ["proc", "dev", "host", "written", "whole"].map(str::to_owned);
    let mut folders = BTreeSet::from(mounts);
    for name in files.keys() {
        let ancestors = Path::new(name).ancestors().skip(1);
        let ancestors = ancestors.map(|folder| folder.display().to_string());
        folders.extend(ancestors.filter(|folder| !folder.is_empty()));
    }
    let folders = folders.iter().map(|name| (name, FOLDER, &[][..]));
    let files = files.iter().map(|(name, bytes)| (name, FILE, &bytes[..]));
    // A folder sorts before its files.
    let entries = (1..).zip(folders.chain(files));
    let entries = entries.map(|(inode, (name, mode, bytes))| {
        (Builder::new(name).ino(inode).mode(mode), Cursor::new(bytes))
    });
    cpio::write_cpio(entries, Vec::new()).context("write the initramfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_bring_what_they_depend_on() {
        let dependencies = "\
            kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz\n\
            kernel/net/9p/9pnet.ko.xz:\n\
            kernel/drivers/net/tun.ko.xz:\n\
            kernel/fs/overlayfs/overlay.ko.xz:\n";
        let files = needed(dependencies, &["9p", "overlay"]).expect("modules.dep");
        let expected = [
            "kernel/fs/9p/9p.ko.xz",
            "kernel/fs/overlayfs/overlay.ko.xz",
            "kernel/net/9p/9pnet.ko.xz",
        ];
        assert_eq!(files, BTreeSet::from(expected));
        assert_eq!(unpacked(expected[0]), "kernel/fs/9p/9p.ko");
    }
}
