//! The Debian package, by dpkg-deb.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::{Places, Tree};
use crate::process;
use crate::root::root;

/// Debian's folder for completions of zsh.
const PLACES: Places = Places {
    zsh: "usr/share/zsh/vendor-completions/_portredir",
};

const ARCH: &str = "amd64";

/// The oldest C library that has what the program calls, by the symbols of the program.
fn glibc(program: &Path) -> Result<String> {
    let mut objdump = Command::new("objdump");
    let symbols = process::output(objdump.arg("-T").arg(program))?;
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|text| {
        let version = text
            .split(|c: char| c != '.' && !c.is_ascii_digit())
            .next()?;
        let mut numbers = version.split('.').map(|number| number.parse::<u32>());
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    let (major, minor) = versions
        .max()
        .context("find the symbols of the C library")?;
    Ok(format!("{major}.{minor}"))
}

/// Packs the files, and returns the path of the package.
pub fn pack(tree: &Tree, program: &Path) -> Result<PathBuf> {
    let glibc = glibc(program)?;
    pack_for(tree, program, &glibc)
}

/// Packs a program that needs this version of the C library.
pub fn pack_for(tree: &Tree, program: &Path, glibc: &str) -> Result<PathBuf> {
    tree.fill(program, &PLACES)?;
    let read = |name: &str| {
        let path = root().join("packaging/deb").join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let license = fs::read_to_string(root().join("LICENSE-MIT")).context("read LICENSE-MIT")?;
    let license: Vec<_> = license
        .lines()
        .map(|line| {
            if line.is_empty() {
                " .".to_owned()
            } else {
                format!(" {line}")
            }
        })
        .collect();
    let copyright = read("copyright")?.replace("@MIT@", &license.join("\n"));
    tree.write(
        "usr/share/doc/portredir/copyright",
        copyright.as_bytes(),
        0o644,
    )?;
    let bytes = size(&tree.files())?;
    let version = &tree.release.version;
    let control = read("control")?
        .replace("@VERSION@", version)
        .replace("@ARCH@", ARCH)
        .replace("@GLIBC@", glibc)
        .replace("@KIB@", &bytes.div_ceil(1024).to_string());
    tree.write("DEBIAN/control", control.as_bytes(), 0o644)?;
    tree.write("DEBIAN/conffiles", b"/etc/portredir/rules.toml\n", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        tree.write(&format!("DEBIAN/{script}"), read(script)?.as_bytes(), 0o755)?;
    }
    tree.settle(&tree.files())?;
    let package = tree.finished(&format!("portredir_{version}_{ARCH}.deb"));
    let mut dpkg = Command::new("dpkg-deb");
    // More threads cut the data into other blocks.
    dpkg.args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"])
        .args([tree.files(), package.clone()])
        .env("SOURCE_DATE_EPOCH", &tree.release.epoch);
    process::run(&mut dpkg)?;
    Ok(package)
}

/// The bytes of all files.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            size(&entry.path())?
        } else {
            entry.metadata()?.len()
        };
    }
    Ok(bytes)
}
