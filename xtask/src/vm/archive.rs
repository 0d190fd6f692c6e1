//! Where packages of kernels and of QEMU come from: the package sources of this machine, and
//! other suites of the same Debian mirror.
//!
//! The other suites have a configuration, lists and a cache of their own below
//! `target/kernels`, so that apt's own sources stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::root::root;

/// The Debian suites that are searched for a kernel that this machine's own
/// sources lack. Linux 5.10 is in bullseye, 6.1 in bookworm, 6.12 in trixie; sid
/// has the newest one.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];

/// The keys that Debian signs its suites with, from the package
/// debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A folder for a kernel or for apt.
pub fn folder(name: &str) -> PathBuf {
    root().join("target/kernels").join(name)
}

/// A set of package sources.
pub struct Archive {
    /// The configuration that names the sources, or `None` for the sources of
    /// this machine.
    config: Option<PathBuf>,
}

impl Archive {
    /// The package sources of this machine.
    pub const fn own() -> Self {
        Self { config: None }
    }

    /// All of [`SUITES`].
    pub fn all_suites() -> Result<Self> {
        Self::of("apt", &SUITES)
    }

    /// Some suites, from the mirror that this machine uses. Each set of suites has a
    /// folder of its own.
    pub fn of(name: &str, suites: &[&str]) -> Result<Self> {
        let folder = folder(name);
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(name)).context("make a folder for apt")?;
        }
        let archive = Self {
            config: Some(folder.join("apt.conf")),
        };
        fs::write(folder.join("sources.list"), sources(&mirror()?, suites))
            .context("write apt's sources")?;
        fs::write(folder.join("apt.conf"), config(&folder)).context("write apt's configuration")?;
        // One suite that the mirror no longer has must not hide the others. When
        // it held the kernel, the search says that the kernel is missing.
        if let Err(error) = process::run(archive.command("apt-get").args(["-qq", "update"])) {
            eprintln!("warning: {error:#}");
        }
        Ok(archive)
    }

    /// The names of the packages that hold kernels, one on a line with a
    /// description.
    pub fn kernels(&self) -> Result<String> {
        let mut search = self.command("apt-cache");
        process::output(search.args(["search", "--names-only", "^linux-image-[0-9]"]))
    }

    /// The package of a kernel, and the packages of its parts where Debian has
    /// split it: from Linux 7 on, `linux-image-*` only depends on
    /// `linux-binary-*` and `linux-modules-*`.
    pub fn parts(&self, package: &str) -> Result<Vec<String>> {
        let listed = process::output(self.command("apt-cache").args(["depends", package]))?;
        let parts = dependencies(&listed).map(str::to_owned);
        Ok([package.to_owned()].into_iter().chain(parts).collect())
    }

    /// Downloads packages and unpacks them into a folder.
    pub fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let downloads = folder.join("downloads");
        fs::create_dir(&downloads).context("make a folder for downloads")?;
        let mut command = self.command("apt-get");
        command.args(["-qq", "download"]).args(packages);
        process::run(command.current_dir(&downloads))?;
        for file in fs::read_dir(&downloads).context("list the downloads")? {
            let mut dpkg = Command::new("dpkg-deb");
            process::run(dpkg.arg("-x").arg(file?.path()).arg(folder))?;
        }
        fs::remove_dir_all(downloads).context("remove the downloads")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if let Some(config) = &self.config {
            command.env("APT_CONFIG", config);
        }
        command
    }
}

/// The address of the Debian mirror that this machine uses.
pub fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)"]);
    let found = process::output(command.args(["Created-By: Packages", "Label: Debian"]))?;
    let mirror = found.lines().next();
    let hint = "find a Debian mirror among apt's sources (apt-get update?)";
    mirror.map(str::to_owned).context(hint)
}

/// `sources.list`: one line for each suite.
fn sources(mirror: &str, suites: &[&str]) -> String {
    let line = |suite| format!("deb [signed-by={KEYRING} target=Packages] {mirror} {suite} main\n");
    suites.iter().map(line).collect()
}

/// A configuration that keeps apt inside of a folder.
fn config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::State::Lists \"{folder}/lists\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         Dir::Etc::SourceList \"{folder}/sources.list\";\n\
         Dir::Etc::SourceParts \"-\";\n\
         // The folder may be closed to the user that apt downloads as.\n\
         APT::Sandbox::User \"root\";\n"
    )
}

/// The parts of a kernel among the lines of `apt-cache depends`.
fn dependencies(listed: &str) -> impl Iterator<Item = &str> {
    let names = listed.lines().filter_map(|line| {
        let line = line.trim_start_matches([' ', '|']);
        line.strip_prefix("Depends: ")
    });
    names.filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_kernel_has_parts() {
        let listed = "linux-image-7.2.13+deb14-amd64\n  \
            PreDepends: linux-base\n \
            |Depends: dracut\n  \
            Depends: <linux-initramfs-tool>\n    \
            dracut\n  \
            Depends: linux-base-7.2.13+deb14-amd64\n  \
            Depends: linux-binary-7.2.13+deb14-amd64\n  \
            Depends: linux-modules-7.2.13+deb14-amd64\n  \
            Suggests: linux-doc-7.2\n";
        let parts: Vec<_> = dependencies(listed).collect();
        assert_eq!(
            parts,
            [
                "linux-binary-7.2.13+deb14-amd64",
                "linux-modules-7.2.13+deb14-amd64"
            ]
        );
    }

    #[test]
    fn whole_kernel_has_no_parts() {
        let listed = "linux-image-6.1.0-56-amd64\n  Depends: kmod\n  Depends: linux-base\n";
        assert_eq!(dependencies(listed).count(), 0);
    }

    #[test]
    fn each_suite_has_a_line() {
        let sources = sources("http://mirror.example/debian/", &SUITES);
        assert_eq!(sources.lines().count(), SUITES.len());
        assert!(sources.ends_with("] http://mirror.example/debian/ sid main\n"));
    }
}
