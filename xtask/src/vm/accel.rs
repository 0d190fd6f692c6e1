//! Hardware virtualization, or emulation where that does not work.

use std::fmt;
use std::fs::OpenOptions;
use std::process::Command;

use anyhow::Result;

/// The accelerator that QEMU runs a guest with.
pub enum Accel {
    /// Hardware virtualization.
    Kvm,
    /// Software emulation.
    Tcg {
        /// Why the CPU does not run the guest.
        why: String,
    },
    /// Software emulation of one processor, whose clock advances a nanosecond with each
    /// instruction.
    Counted,
}

impl Accel {
    /// The words of a guest that boots.
    pub const PROOF: &str = "it boots";

    /// Boots a guest with KVM by a command that prints [`Self::PROOF`]. A device `/dev/kvm`
    /// that exists need not work.
    pub fn find(trial: impl FnOnce(&Self) -> Result<Command>) -> Result<Self> {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let why = match kvm {
            Err(error) => format!("/dev/kvm: {error}"),
            Ok(_) => {
                let output = trial(&Self::Kvm)?.output()?;
                if String::from_utf8_lossy(&output.stdout).contains(Self::PROOF) {
                    return Ok(Self::Kvm);
                }
                let error = String::from_utf8_lossy(&output.stderr);
                let error = error.lines().next().unwrap_or("no word from it");
                format!("it does not boot with kvm: {error}")
            }
        };
        Ok(Self::Tcg { why })
    }

    /// Whether QEMU emulates the processors.
    pub const fn is_emulated(&self) -> bool {
        !matches!(self, Self::Kvm)
    }

    /// The arguments of QEMU for the processors.
    pub fn args(&self) -> Vec<&'static str> {
        // These are slow to emulate and do not matter to the tests: string instructions,
        // which go byte by byte, and a fifth level of page tables.
        const EMULATED: &str = "max,-erms,-fsrm,-la57";
        match self {
            Self::Kvm => vec!["-accel", "kvm", "-smp", "2", "-cpu", "max"],
            Self::Tcg { .. } => vec!["-accel", "tcg", "-smp", "2", "-cpu", EMULATED],
            // Without `sleep=off`, QEMU would wait in real time while the guest is idle.
            Self::Counted => vec![
                "-accel",
                "tcg",
                "-icount",
                "shift=0,sleep=off",
                "-rtc",
                "clock=vm",
                "-smp",
                "1",
                "-cpu",
                EMULATED,
            ],
        }
    }

    /// The parameters of the kernel.
    pub const fn parameters(&self) -> &'static str {
        if self.is_emulated() {
            // Here as well: string instructions (112 is X86_FEATURE_REP_GOOD), and memory
            // that is cleared beforehand.
            "console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 clearcpuid=112"
        } else {
            "console=ttyS0 quiet panic=-1"
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => f.write_str("run by the CPU (kvm)"),
            Self::Tcg { why } => write!(f, "emulated (tcg): {why}"),
            Self::Counted => f.write_str("emulated (tcg), a nanosecond for each instruction"),
        }
    }
}
