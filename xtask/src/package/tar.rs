//! The tarball, whose files go below /usr/local.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::rpm::PLACES;
use super::tree::Tree;
use crate::process;
use crate::root::root;

/// Packs the files, and returns the path of the tarball.
pub fn pack(tree: &Tree, program: &Path) -> Result<PathBuf> {
    tree.fill(program, &PLACES)?;
    let name = format!("portredir-{}-x86_64-linux", tree.release.version);
    let folder = tree.root.join(&name);
    let files = tree.files();
    // The folder has the layout of /usr/local.
    fs::rename(files.join("usr"), &folder).context("move the files")?;
    let etc = folder.join("share/doc/portredir/rules.toml");
    fs::rename(files.join("etc/portredir/rules.toml"), etc).context("move the rules")?;
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(
            root().join(license),
            folder.join("share/doc/portredir").join(license),
        )
        .with_context(|| format!("copy {license}"))?;
    }
    let unit = folder.join("lib/systemd/system/portredir.service");
    let text = fs::read_to_string(&unit).context("read the unit")?;
    fs::write(&unit, text.replace("/usr/bin/", "/usr/local/bin/")).context("write the unit")?;
    tree.settle(&folder)?;
    let package = tree.finished(&format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--format=gnu",
    ])
    .arg("--use-compress-program=gzip -9 -n")
    .arg("-cf")
    .arg(&package)
    .arg("-C")
    .args([&tree.root, Path::new(&name)]);
    process::run(&mut tar)?;
    Ok(package)
}
