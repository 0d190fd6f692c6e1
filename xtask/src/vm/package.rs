//! Debian's kernel packages, unpacked below `target/kernels`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

/// An unpacked package.
pub struct Package {
    /// `boot` and `lib/modules` are in it.
    pub folder: PathBuf,
    /// As `uname -r` prints it.
    pub release: String,
}

impl Package {
    /// The newest of a series that was unpacked before, else that apt has.
    pub fn provide(series: &str) -> Result<Self> {
        let folder = super::folder(series);
        if let Ok(package) = Self::at(&folder) {
            return Ok(package);
        }
        let found = process::output(Command::new("apt-cache").args([
            "search",
            "--names-only",
            "^linux-image-[0-9]",
        ]))?;
        let name = newest(series, found.lines()).with_context(|| {
            format!("find a package linux-image-{series}.*-amd64 (apt-get update?)")
        })?;
        // Half of it is not taken for all of it.
        let part = super::folder(&format!("{series}.part"));
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part).context("make a folder for the kernel")?;
        process::run(
            Command::new("apt-get")
                .args(["-qq", "download", name])
                .current_dir(&part),
        )?;
        let archive = only_file(&part)?;
        process::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&part))?;
        fs::remove_file(archive)?;
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

    /// The kernel itself.
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The folder of its modules.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }

    /// Where its messages go.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let context = || format!("list {}", folder.display());
    let entries: Vec<_> = fs::read_dir(folder).with_context(context)?.collect();
    ensure!(entries.len() == 1, "{} has not one file", folder.display());
    let entry = entries.into_iter().next().with_context(context)?;
    Ok(entry?.path())
}

/// The newest package of a series among lines of `apt-cache search`. Not the
/// one for clouds: it has no 9p, by which the guest reads our files.
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
            linux-image-6.12.117+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)\n";
        let newest = |series| newest(series, lines.lines());
        assert_eq!(newest("6.1"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest("6.12"), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(newest("5.10"), None);
    }
}
