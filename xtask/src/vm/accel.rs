//! Hardware virtualization, or emulation where that does not work.

use std::fmt;
use std::fs::OpenOptions;
use std::time::Duration;

use anyhow::Result;

use super::guest::boot;
use super::package::Package;

/// The time limit of a trial boot. A boot takes two seconds, nested in another
/// guest ten.
const PATIENCE: Duration = Duration::from_secs(20);

/// The accelerator that QEMU runs a guest with.
pub enum Accel {
    /// Hardware virtualization.
    Kvm,
    /// Software emulation.
    Tcg {
        /// Why the CPU does not run the guest.
        why: String,
    },
}

impl Accel {
    /// Boots a guest with KVM. A device `/dev/kvm` that exists need not work.
    pub fn find(package: &Package) -> Result<Self> {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let why = match kvm {
            Err(error) => format!("/dev/kvm: {error}"),
            Ok(_) => {
                let output = boot(package, "kvm", PATIENCE, "echo it boots")?.output()?;
                if String::from_utf8_lossy(&output.stdout).contains("it boots") {
                    return Ok(Self::Kvm);
                }
                let error = String::from_utf8_lossy(&output.stderr);
                let error = error.lines().next().unwrap_or("no word from it");
                format!("it does not boot with kvm: {error}")
            }
        };
        Ok(Self::Tcg { why })
    }

    /// The name of the accelerator in QEMU.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg { .. } => "tcg",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => f.write_str("run by the CPU (kvm)"),
            Self::Tcg { why } => write!(f, "emulated (tcg): {why}"),
        }
    }
}
