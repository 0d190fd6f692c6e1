//! Debian's kernel packages, unpacked below `target/kernels`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::archive::{self, Archive};
use crate::process;

/// An unpacked kernel.
pub struct Package {
    /// The folder that has `lib/modules` in it.
    pub folder: PathBuf,
    /// The release as `uname -r` prints it.
    pub release: String,
}

impl Package {
    /// The kernel of this series that was unpacked before, or else the newest
    /// one that apt has.
    pub fn provide(series: &str) -> Result<Self> {
        let folder = archive::folder(series);
        if let Ok(package) = Self::at(&folder) {
            return Ok(package);
        }
        let (archive, name) = find(series)?;
        // An interrupted download leaves a partial folder, which is never used.
        let part = archive::folder(&format!("{series}.part"));
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part).context("make a folder for the kernel")?;
        unpack(&archive, &name, &part)?;
        let package = Self::at(&part)?;
        process::run(
            Command::new(process::find("depmod").context("find depmod")?)
                .arg("-b")
                .arg(&part)
                .arg(&package.release),
        )?;
        fs::rename(&part, &folder).context("rename the kernel's folder")?;
        Ok(Self { folder, ..package })
    }

    fn at(folder: &Path) -> Result<Self> {
        let modules = only_file(&folder.join("lib/modules"))?;
        let release = modules.file_name().context("a release")?;
        Ok(Self {
            folder: folder.to_owned(),
            release: release.to_string_lossy().into_owned(),
        })
    }

    /// The path of the kernel: beside its modules from Linux 7 on, in `boot`
    /// before.
    pub fn vmlinuz(&self) -> PathBuf {
        let beside_modules = self.modules().join("vmlinuz");
        if beside_modules.exists() {
            return beside_modules;
        }
        self.folder.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The folder of the kernel's modules.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }

    /// The file that the kernel's messages go to.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }
}

/// The newest kernel package of a series, and the sources that have it.
fn find(series: &str) -> Result<(Archive, String)> {
    let own = Archive::own();
    if let Some(name) = newest(series, own.kernels()?.lines()) {
        return Ok((own, name.to_owned()));
    }
    let all = Archive::all_suites()?;
    let kernels = all.kernels()?;
    let name = newest(series, kernels.lines())
        .with_context(|| format!("find a package linux-image-{series}.*-amd64 in Debian"))?;
    Ok((all, name.to_owned()))
}

/// Downloads a kernel and unpacks it into an empty folder.
fn unpack(archive: &Archive, package: &str, folder: &Path) -> Result<()> {
    archive.unpack(&archive.parts(package)?, folder)?;
    // Packages from Linux 7 on rely on the link /lib, which depmod needs too.
    if folder.join("usr/lib/modules").exists() && !folder.join("lib").exists() {
        symlink("usr/lib", folder.join("lib")).context("link lib to usr/lib")?;
    }
    Ok(())
}

/// The path of the one file or folder that a folder has.
fn only_file(folder: &Path) -> Result<PathBuf> {
    let context = || format!("list {}", folder.display());
    let entries: Vec<_> = fs::read_dir(folder).with_context(context)?.collect();
    ensure!(entries.len() == 1, "{} has not one file", folder.display());
    let entry = entries.into_iter().next().with_context(context)?;
    Ok(entry?.path())
}

/// The newest package of a series among lines of `apt-cache search`. The kernel
/// for clouds is left out: it lacks 9p, by which the guest reads the host's files.
fn newest<'a>(series: &str, lines: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let prefix = format!("linux-image-{series}.");
    let numbers = |name: &str| -> Vec<u32> {
        let parts = name.split(|c: char| !c.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    lines
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with(&prefix) && name.ends_with("-amd64"))
        .filter(|name| !name.contains("-cloud-") && !name.contains("-rt-"))
        .max_by_key(|name| numbers(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series() {
        let lines = "\
            linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
            linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
            linux-image-6.1.0-57-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)\n\
            linux-image-6.1.0-57-rt-amd64 - Linux 6.1 for 64-bit PCs, PREEMPT_RT (signed)\n\
            linux-image-6.1.0-57-amd64-unsigned - Linux 6.1 for 64-bit PCs\n\
            linux-image-6.12.9+bpo-amd64 - Linux 6.12 for 64-bit PCs (signed)\n\
            linux-image-6.12.117+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)\n\
            linux-image-7.2.13+deb14-amd64-dbg - Linux 7.2.13 for 64-bit PCs (debug symbols)\n\
            linux-image-7.2.13+deb14-cloud-amd64 - Linux 7.2.13 for x86-64 cloud\n\
            linux-image-7.2.13+deb14-amd64 - Linux 7.2.13 for 64-bit PCs\n";
        let newest = |series| newest(series, lines.lines());
        assert_eq!(newest("6.1"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest("6.12"), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(newest("7.2"), Some("linux-image-7.2.13+deb14-amd64"));
        assert_eq!(newest("5.10"), None);
    }
}
