//! What a guest has before it has the host's files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::Builder;

use super::package::Package;
use crate::process;

/// Modules for the host's files; where they are built in they are not missed.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];

const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;

/// An archive whose `init` ends with the script.
pub fn build(package: &Package, script: &str) -> Result<Vec<u8>> {
    let modules = package.modules();
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let busybox = process::find("busybox").context("find busybox")?;
    let mut files = BTreeMap::from([
        ("init".to_owned(), include_bytes!("init.sh").to_vec()),
        ("bin/busybox".to_owned(), read(&busybox)?),
        ("run.sh".to_owned(), script.as_bytes().to_vec()),
        (
            "modules".to_owned(),
            modules.display().to_string().into_bytes(),
        ),
    ]);
    let place = |file: &str| format!("lib/modules/{}/{file}", package.release);
    for list in ["modules.dep", "modules.builtin"] {
        files.insert(place(list), read(&modules.join(list))?);
    }
    let dependencies = fs::read_to_string(modules.join("modules.dep"))?;
    for line in dependencies.lines() {
        let (module, needed) = line.split_once(':').context("read modules.dep")?;
        let name = Path::new(module).file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        let (name, _) = name.split_once('.').context("read modules.dep")?;
        if MODULES.contains(&name) {
            for module in needed.split_whitespace().chain([module]) {
                files.insert(place(module), read(&modules.join(module))?);
            }
        }
    }
    let mounts = ["proc", "host", "written", "whole"].map(str::to_owned);
    let mut folders = BTreeSet::from(mounts);
    for name in files.keys() {
        let ancestors = Path::new(name).ancestors().skip(1);
        let ancestors = ancestors.map(|folder| folder.display().to_string());
        folders.extend(ancestors.filter(|folder| !folder.is_empty()));
    }
    let folders = folders.iter().map(|name| (name, FOLDER, &[][..]));
    let files = files.iter().map(|(name, bytes)| (name, FILE, &bytes[..]));
    // A folder sorts before what is in it.
    let entries = (1..).zip(folders.chain(files));
    let entries = entries.map(|(inode, (name, mode, bytes))| {
        (Builder::new(name).ino(inode).mode(mode), Cursor::new(bytes))
    });
    cpio::write_cpio(entries, Vec::new()).context("write the initramfs")
}
