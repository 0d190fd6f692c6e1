//! The package in a Debian with systemd as PID 1, from its installation to its purge: a
//! virtual machine boots a root file system, and a program in it runs the checks.

mod image;
pub mod report;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use self::report::Report;
use crate::vm::{Disks, Vm};
use crate::{package, tested};

/// A release of Debian.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Debian 12: systemd 252, Linux 6.1.
    Bookworm,
    /// Debian 13: systemd 257, Linux 6.12.
    Trixie,
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The packages of docker, which Debian 13 has split.
    const fn docker(self) -> &'static str {
        match self {
            Self::Bookworm => "docker.io",
            Self::Trixie => "docker.io,docker-cli",
        }
    }

    /// The series of the kernel of the release.
    const fn kernel(self) -> &'static str {
        match self {
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
        }
    }
}

/// The time limit of a run. Emulated, a run takes some minutes on an idle host.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

/// Runs the checks in each suite, and prints their outcomes.
pub fn test(suites: &[Suite], program: Option<PathBuf>, record: bool) -> Result<ExitCode> {
    let package = package::debian(program)?;
    let mut is_good = true;
    for &suite in suites {
        let vm = Vm::new(suite.kernel(), &[])?;
        let root = image::root((suite.name(), suite.docker()), &vm)?;
        let files = image::lab(suite.name(), &package)?;
        let report = run(&vm, &root, &files)?;
        println!("\n{report}");
        is_good &= report.is_good();
        if record {
            tested::record(&format!("systemd on {}", suite.name()), &report.markdown())?;
        }
    }
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Boots the machine, and reads what the checks print.
fn run(vm: &Vm, root: &Path, files: &Path) -> Result<Report> {
    let mut command = vm.start(LIMIT, &Disks { root, files })?;
    let mut qemu = command
        .stdout(Stdio::piped())
        .spawn()
        .context("start QEMU")?;
    let stdout = qemu.stdout.take().context("read the output of the guest")?;
    let mut report = Report::default();
    report.follow(stdout)?;
    qemu.wait().context("wait for QEMU")?;
    if !report.is_complete() {
        println!("the last kernel messages:\n{}", vm.last_words());
    }
    Ok(report)
}
