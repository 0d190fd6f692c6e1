//! The packages: a Debian package, an RPM package and a tarball of a static program.
//!
//! Equal sources and an equal toolchain give equal bytes: the program knows no path of this
//! host, every time is that of the commit, and archives are sorted.

mod deb;
mod release;
mod rpm;
mod sbom;
mod tar;
#[cfg(test)]
mod tests;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use sha2::{Digest, Sha256};

pub use self::release::Release;
use self::tree::Tree;
use crate::root::root;
use crate::{cargo, process, sources};

/// The options of `cargo xtask package`.
#[derive(Args)]
pub struct Options {
    /// The kind of package.
    kind: Kind,
    /// Build everything twice, in two folders, and compare the bytes.
    #[arg(long)]
    twice: bool,
    /// Pack a program that was built before.
    #[arg(long, value_name = "PATH", conflicts_with = "twice")]
    program: Option<PathBuf>,
}

/// A kind of package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A Debian package, which needs the C library of this host or a newer one.
    Deb,
    /// An RPM package, which needs the same.
    Rpm,
    /// A tarball with a static program, for every distribution.
    Tar,
    /// The list of the crates in the program, as CycloneDX JSON.
    Sbom,
}

/// The target of the static program.
const STATIC: &str = "x86_64-unknown-linux-musl";

/// Builds a package, and prints its path and its hash.
pub fn package(options: &Options) -> Result<()> {
    let release = Release::of_sources()?;
    let out = root().join("target/package");
    let path = match &options.program {
        Some(program) => pack(options.kind, &release, (&out, program))?,
        None => build(options.kind, &release, &out)?,
    };
    let hash = sha256(&path)?;
    if options.twice {
        let again = build(options.kind, &release, &root().join("target/package-again"))?;
        ensure!(
            sha256(&again)? == hash,
            "{} and {} differ",
            path.display(),
            again.display()
        );
        println!("two builds gave the same bytes");
    }
    println!("{hash}  {}", path.display());
    Ok(())
}

/// Builds the Debian package, or packs a program that was built before.
pub fn debian(program: Option<PathBuf>) -> Result<PathBuf> {
    let release = Release::of_sources()?;
    let out = root().join("target/package");
    match program {
        Some(program) => pack(Kind::Deb, &release, (&out, &program)),
        None => build(Kind::Deb, &release, &out),
    }
}

fn sha256(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(sources::hex(&Sha256::digest(bytes)))
}

fn build(kind: Kind, release: &Release, out: &Path) -> Result<PathBuf> {
    if kind == Kind::Sbom {
        return sbom::write(release, out);
    }
    let program = compile(kind, release, out)?;
    pack(kind, release, (out, &program))
}

fn pack(kind: Kind, release: &Release, (out, program): (&Path, &Path)) -> Result<PathBuf> {
    let tree = Tree {
        release,
        root: out.join(format!("{kind:?}").to_lowercase()),
    };
    match kind {
        Kind::Deb => deb::pack(&tree, program),
        Kind::Rpm => rpm::pack(&tree, program),
        Kind::Tar => tar::pack(&tree, program),
        Kind::Sbom => sbom::write(release, out),
    }
}

/// Compiles the program so that its bytes depend on sources and toolchain alone.
fn compile(kind: Kind, release: &Release, out: &Path) -> Result<PathBuf> {
    let mut cargo = cargo::cargo(&["build", "--locked", "--release"]);
    cargo.args(["--package=portredir", "--bin=portredir"]);
    let target_dir = out.join("build");
    cargo.arg("--target-dir").arg(&target_dir);
    if kind == Kind::Tar {
        cargo.args(["--target", STATIC]);
    }
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags().join("\x1f"))
        .env("CARGO_INCREMENTAL", "0")
        .env("SOURCE_DATE_EPOCH", &release.epoch);
    let programs = cargo::programs(cargo)?;
    let program = programs
        .into_iter()
        .find(|program| program.name == "portredir");
    Ok(program.context("find portredir after its build")?.path)
}

/// The flags of the compiler with which a program knows no path of this host.
pub fn flags() -> [String; 3] {
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    [
        remap(&process::cargo_home(), "/cargo"),
        remap(&root(), "/portredir"),
        // The hash of the path of a folder is in the names of symbols.
        "-Cstrip=symbols".to_owned(),
    ]
}
