//! The RPM package, by rpmbuild.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::{Places, Tree};
use crate::process;
use crate::root::root;

/// The folder for completions of zsh outside of Debian.
pub const PLACES: Places = Places {
    zsh: "usr/share/zsh/site-functions/_portredir",
};

/// Packs the files, and returns the path of the package.
pub fn pack(tree: &Tree, program: &Path) -> Result<PathBuf> {
    tree.fill(program, &PLACES)?;
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let text = fs::read(root().join(license)).with_context(|| format!("read {license}"))?;
        tree.write(&format!("usr/share/doc/portredir/{license}"), &text, 0o644)?;
    }
    tree.settle(&tree.files())?;
    let version = &tree.release.version;
    let spec = fs::read_to_string(root().join("packaging/rpm/portredir.spec"));
    let spec = spec
        .context("read portredir.spec")?
        .replace("@VERSION@", version)
        .replace("@TREE@", &tree.files().display().to_string());
    let path = tree.root.join("portredir.spec");
    fs::write(&path, spec).context("write the spec")?;
    let top = tree.root.join("rpmbuild");
    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild
        .args(["-bb", "--quiet", "--target=x86_64-linux", "--define"])
        .arg(format!("_topdir {}", top.display()))
        .arg("--define=_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm")
        .arg(&path)
        .env("SOURCE_DATE_EPOCH", &tree.release.epoch);
    process::run(&mut rpmbuild)?;
    let name = format!("portredir-{version}-1.x86_64.rpm");
    let package = tree.finished(&name);
    fs::rename(top.join("RPMS").join(&name), &package).context("find the package")?;
    Ok(package)
}
