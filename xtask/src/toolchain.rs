//! The toolchain of the eBPF crate, which needs unstable options and the source of
//! `core`. The stable toolchain of the rest of the workspace has neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::root::root;

/// The bpf-linker that `setup --ebpf` installs.
pub const BPF_LINKER: &str = "0.13.0";

const HELP: &str = "\
no toolchain for eBPF; install one of these two
  with rustup:  rustup toolchain install nightly --component rust-src
                cargo binstall bpf-linker
  on Debian:    cargo xtask setup --ebpf, which installs the packages rustc-web,
                cargo-web, rust-web-src and rust-web-clippy, and bpf-linker with
                the LLVM packages that it is compiled with";

/// A rustc, a cargo and the source of `core`, all of one version.
pub struct Toolchain {
    /// The folder with `bin/rustc` and `lib/rustlib`.
    sysroot: PathBuf,
    /// The version, in the form `rustc 1.96.0 (ac68faa20 2026-05-25), LLVM 22.1.8`.
    pub version: String,
    /// The first number of LLVM's version.
    pub llvm: String,
}

impl Toolchain {
    /// Finds a nightly of rustup that has `rust-src`, or else the toolchain of the
    /// distribution.
    pub fn find() -> Result<Self> {
        let candidates = nightly().into_iter().chain([PathBuf::from("/usr")]);
        for sysroot in candidates {
            let parts = [
                "bin/rustc",
                "bin/cargo",
                "lib/rustlib/src/rust/library/core",
            ];
            if parts.iter().all(|part| sysroot.join(part).exists()) {
                return Self::at(sysroot);
            }
        }
        bail!(HELP)
    }

    fn at(sysroot: PathBuf) -> Result<Self> {
        let mut rustc = Command::new(sysroot.join("bin/rustc"));
        let about = process::output(rustc.arg("-vV").env_remove("LD_LIBRARY_PATH"))?;
        let (name, _) = about.split_once('\n').context("read rustc -vV")?;
        let llvm = about
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .context("read LLVM's version in rustc -vV")?;
        Ok(Self {
            version: format!("{name}, LLVM {llvm}"),
            llvm: llvm.split('.').next().unwrap_or_default().to_owned(),
            sysroot,
        })
    }

    /// The path of a program of the toolchain, which need not exist.
    pub fn program(&self, name: &str) -> PathBuf {
        self.sysroot.join("bin").join(name)
    }

    /// Arguments of `cargo build` or `cargo clippy` for the eBPF crate.
    pub fn build_args(&self) -> [String; 7] {
        [
            "--package=portredir-ebpf".into(),
            "--release".into(),
            "--locked".into(),
            "--target=bpfel-unknown-none".into(),
            "-Zbuild-std=core".into(),
            "--target-dir".into(),
            // A folder of its own, because another cargo writes it.
            target_dir().display().to_string(),
        ]
    }

    /// Makes a command use this toolchain. Settings of the user, and of the cargo
    /// that runs this program, must not change the object.
    pub fn apply(&self, command: &mut Command) {
        for name in [
            "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
            "CARGO_BUILD_RUSTC_WRAPPER",
            "CARGO_INCREMENTAL",
            // Cargo points this variable at the libraries of its own toolchain.
            "LD_LIBRARY_PATH",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(name);
        }
        command
            .env("CARGO", self.program("cargo"))
            .env("RUSTC", self.program("rustc"))
            // A stable compiler takes unstable options only with this variable.
            .env("RUSTC_BOOTSTRAP", "1");
    }

    /// The flags for `CARGO_ENCODED_RUSTFLAGS`.
    pub fn flags(&self, bpf_linker: &Path) -> Result<String> {
        let mut flags = vec![
            format!("-Clinker={}", bpf_linker.display()),
            "-Clink-arg=--btf".to_owned(),
            // BTF is made from the debug information.
            "-Cdebuginfo=2".to_owned(),
            // The layout of registers in a kprobe. The object has no kprobe, so one
            // value for all hosts gives one object for all hosts.
            "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        ];
        let mut remap = |from: &Path, to: &str| {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        };
        remap(&root(), ".");
        remap(&self.sysroot.join("lib/rustlib/src/rust"), "/rustc");
        // Each registry has a folder, whose name depends on the registry's address.
        let registries = process::cargo_home().join("registry/src");
        for registry in fs::read_dir(&registries).context("list cargo's downloaded sources")? {
            remap(&registry?.path(), "/cargo");
        }
        Ok(flags.join("\u{1f}"))
    }
}

/// The target folder of the eBPF crate.
pub fn target_dir() -> PathBuf {
    root().join("target/ebpf")
}

/// The sysroot of rustup's nightly, if there is one.
fn nightly() -> Option<PathBuf> {
    let rustup = process::find("rustup")?;
    let output = Command::new(rustup)
        .args(["run", "nightly", "rustc", "--print=sysroot"])
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| sysroot.trim_end().into())
}
