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
    documents(tree)?;
    let version = &tree.release.version;
    let kib = size(&tree.files())?.div_ceil(1024);
    let control = read("control")?
        .replace("@VERSION@", version)
        .replace("@ARCH@", ARCH)
        .replace("@GLIBC@", glibc)
        .replace("@KIB@", &kib.to_string());
    tree.write("DEBIAN/control", control.as_bytes(), 0o644)?;
    tree.write("DEBIAN/conffiles", b"/etc/portredir/rules.toml\n", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        let text = read(script)?;
        tree.write(&format!("DEBIAN/{script}"), text.as_bytes(), 0o755)?;
    }
    let sums = sums(&tree.files())?;
    tree.write("DEBIAN/md5sums", sums.as_bytes(), 0o644)?;
    tree.settle(&tree.files())?;
    let package = tree.finished(&format!("portredir_{version}-1_{ARCH}.deb"));
    let mut dpkg = Command::new("dpkg-deb");
    // More threads cut the data into other blocks.
    dpkg.args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"])
        .args([tree.files(), package.clone()])
        .env("SOURCE_DATE_EPOCH", &tree.release.epoch);
    process::run(&mut dpkg)?;
    Ok(package)
}

/// Writes the documents that Debian asks for.
fn documents(tree: &Tree) -> Result<()> {
    let license = fs::read_to_string(root().join("LICENSE-MIT")).context("read LICENSE-MIT")?;
    let license = license.lines().map(|line| match line {
        "" => " .".to_owned(),
        line => format!(" {line}"),
    });
    let license: Vec<_> = license.collect();
    let copyright = read("copyright")?.replace("@MIT@", &license.join("\n"));
    let mut date = Command::new("date");
    let date = date.args(["--utc", "--rfc-email", "--date"]);
    let date = date.arg(format!("@{}", tree.release.epoch));
    let date = process::output(date.env("LC_ALL", "C"))?;
    let changes = read("changelog")?
        .replace("@VERSION@", &tree.release.version)
        .replace("@DATE@", &date);
    let changelog = "usr/share/doc/portredir/changelog.Debian";
    tree.compressed(changelog, changes.as_bytes())?;
    for (to, text) in [
        ("doc/portredir/copyright", copyright),
        ("lintian/overrides/portredir", read("lintian-overrides")?),
    ] {
        tree.write(&format!("usr/share/{to}"), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// The hashes of all files but the configuration, for `dpkg --verify`.
fn sums(files: &Path) -> Result<String> {
    let mut find = Command::new("find");
    let find = find.args(["usr", "-type", "f"]).current_dir(files);
    let found = process::output(find)?;
    let mut paths: Vec<_> = found.lines().collect();
    paths.sort_unstable();
    let mut md5sum = Command::new("md5sum");
    let sums = process::output(md5sum.args(paths).current_dir(files))?;
    Ok(sums + "\n")
}

/// Reads a file of the sources of the package.
fn read(name: &str) -> Result<String> {
    let path = root().join("packaging/deb").join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
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
