//! QEMU: the one of this machine, or a newer one that is unpacked beside the kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::archive::{self, Archive};
use super::card::Card;

/// The program of the package qemu-system-x86.
const PROGRAM: &str = "qemu-system-x86_64";

/// The Debian suite with the newer QEMU, and the one that it is made for.
const SUITES: [&str; 2] = ["bookworm-backports", "bookworm"];

/// The packages of QEMU. Libraries are those of the QEMU that is installed.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// An emulator.
pub struct Qemu {
    /// The folder that the packages were unpacked to; `None` for the program of this
    /// machine.
    folder: Option<PathBuf>,
}

impl Qemu {
    /// The program of this machine.
    pub const fn installed() -> Self {
        Self { folder: None }
    }

    /// The program of this machine if it emulates all of these cards; else a newer one,
    /// which is downloaded once.
    pub fn with(cards: &[Card]) -> Result<Self> {
        let installed = Self::installed();
        if installed.has(cards)? {
            return Ok(installed);
        }
        let folder = archive::folder("qemu");
        if !folder.exists() {
            unpack(&folder)?;
        }
        let newer = Self {
            folder: Some(folder),
        };
        ensure!(
            newer.has(cards)?,
            "QEMU of {} does not emulate {cards:?}",
            SUITES[0]
        );
        Ok(newer)
    }

    /// Whether the program emulates these cards. `igb` came with QEMU 8.0.
    fn has(&self, cards: &[Card]) -> Result<bool> {
        for card in cards {
            let mut command = Command::new("env");
            self.add_to(&mut command);
            // A list of all devices would load all modules, also those of another QEMU.
            command.args(["-machine", "none", "-device"]);
            command.arg(format!("{},help", card.device()));
            let output = command.output().context("start QEMU")?;
            let known = format!("{} options:", card.device());
            if !String::from_utf8_lossy(&output.stdout).contains(&known) {
                let error = String::from_utf8_lossy(&output.stderr);
                eprintln!("{}", error.trim_end());
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds the program, and where its files are, to a command that starts another one.
    pub fn add_to(&self, command: &mut Command) {
        let Some(folder) = &self.folder else {
            command.arg(PROGRAM);
            return;
        };
        // Otherwise the program would load the modules of the installed QEMU.
        command.env(
            "QEMU_MODULE_DIR",
            folder.join("usr/lib/x86_64-linux-gnu/qemu"),
        );
        command.arg(folder.join("usr/bin").join(PROGRAM));
        for data in ["qemu", "seabios"] {
            command.arg("-L").arg(folder.join("usr/share").join(data));
        }
    }
}

/// Downloads and unpacks the newer QEMU.
fn unpack(folder: &Path) -> Result<()> {
    let archive = Archive::of("apt-qemu", &SUITES)?;
    let part = archive::folder("qemu.part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).context("make a folder for QEMU")?;
    let packages = PACKAGES.map(|package| format!("{package}/{}", SUITES[0]));
    archive.unpack(&packages, &part)?;
    fs::rename(&part, folder).context("rename the folder of QEMU")
}
