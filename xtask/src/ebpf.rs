//! The committed eBPF object, which portredir embeds.
//!
//! A record beside the object names the sources and the toolchain it was built
//! from. Equal sources and an equal toolchain give equal bytes in any folder, so
//! anybody can check the committed object.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::root::root;
use crate::toolchain::{BPF_LINKER, Toolchain, target_dir};
use crate::{process, sources, stack};

/// The content of `portredir.bpf.json`: the sources and the toolchain of the
/// object.
#[derive(Serialize, Deserialize)]
struct Record {
    sources_sha256: String,
    object_sha256: String,
    rustc: String,
    bpf_linker: String,
}

impl Record {
    fn read() -> Result<Self> {
        let text = fs::read_to_string(record_path()).context("read portredir.bpf.json")?;
        serde_json::from_str(&text).context("parse portredir.bpf.json")
    }

    fn toolchain(&self) -> String {
        format!("{}, bpf-linker {}", self.rustc, self.bpf_linker)
    }
}

fn object_path() -> PathBuf {
    root().join("portredir/ebpf/portredir.bpf.o")
}

fn record_path() -> PathBuf {
    object_path().with_extension("json")
}

/// Compiles the object and replaces the committed one.
pub fn build() -> Result<()> {
    let (object, record) = compile()?;
    fs::write(object_path(), &object).context("write portredir.bpf.o")?;
    let text = serde_json::to_string_pretty(&record)? + "\n";
    fs::write(record_path(), text).context("write portredir.bpf.json")?;
    println!(
        "wrote {}: {} bytes, {}",
        object_path().display(),
        object.len(),
        record.toolchain()
    );
    Ok(())
}

/// Compiles the object and compares it with the committed one.
pub fn check() -> Result<()> {
    let old = Record::read()?;
    let old_object = fs::read(object_path()).context("read portredir.bpf.o")?;
    let (object, new) = compile()?;
    ensure!(
        old.sources_sha256 == new.sources_sha256,
        "portredir.bpf.o was built from other sources: run cargo xtask build-ebpf"
    );
    ensure!(
        old.object_sha256 == sha256(&old_object),
        "portredir.bpf.o is not the object that portredir.bpf.json describes: \
         run cargo xtask build-ebpf"
    );
    if old.toolchain() != new.toolchain() {
        println!(
            "the toolchains differ, so only the hash of the sources was compared\n\
             committed object: {}\npresent toolchain: {}",
            old.toolchain(),
            new.toolchain()
        );
    } else if object != old_object {
        let path = target_dir().join("portredir.bpf.o");
        fs::write(&path, object).context("write the object for comparison")?;
        bail!(
            "portredir.bpf.o differs from what its sources and {} give; compare {}",
            new.toolchain(),
            path.display()
        );
    } else {
        println!("portredir.bpf.o equals what its sources give, byte for byte");
    }
    Ok(())
}

fn compile() -> Result<(Vec<u8>, Record)> {
    let toolchain = Toolchain::find()?;
    let linker = process::find("bpf-linker")
        .context("no bpf-linker on PATH or in cargo's bin folder: run cargo xtask setup --ebpf")?;
    let linker_version = process::output(Command::new(&linker).arg("--version"))?;
    let linker_version = linker_version.trim_start_matches("bpf-linker ").to_owned();
    // The hash is taken before the build: a file that changes during the build
    // then makes the object stale.
    let sources_sha256 = sources::sha256()?;

    let mut cargo = Command::new(toolchain.program("cargo"));
    cargo.arg("build").args(toolchain.build_args());
    toolchain.apply(&mut cargo);
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", toolchain.flags(&linker)?)
        .current_dir(root());
    process::run(&mut cargo).with_context(|| {
        format!(
            "compile the datapath (bpf-linker {BPF_LINKER} for LLVM {} is known to work)",
            toolchain.llvm
        )
    })?;
    let built = target_dir().join("bpfel-unknown-none/release/portredir-ebpf");
    let object = strip(&fs::read(built).context("read the linker's object")?)?;
    stack::check(&object)?;
    let record = Record {
        sources_sha256,
        object_sha256: sha256(&object),
        rustc: toolchain.version,
        bpf_linker: linker_version,
    };
    Ok((object, record))
}

/// Removes DWARF, which no loader reads and which is five times as large as the
/// rest. BTF stays. `objcopy` would do, but each LLVM has it in another place.
fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(object).context("parse the linker's object")?;
    for section in &mut elf.sections {
        section.delete =
            section.name.starts_with(b".debug_") || section.name.starts_with(b".rel.debug_");
    }
    elf.delete_orphans();
    // LLVM keeps the names of sections in one table with those of symbols; the
    // object crate wants a table for each.
    let names = elf.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped).context("strip the object")?;
    Ok(stripped)
}

fn sha256(bytes: &[u8]) -> String {
    sources::hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_is_built_from_these_sources() {
        let record = Record::read().expect("run cargo xtask build-ebpf");
        let sources = sources::sha256().expect("the sources are readable");
        let object = fs::read(object_path()).expect("run cargo xtask build-ebpf");
        assert_eq!(
            record.sources_sha256, sources,
            "portredir.bpf.o is older than its sources: run cargo xtask build-ebpf"
        );
        assert_eq!(
            record.object_sha256,
            sha256(&object),
            "portredir.bpf.o and portredir.bpf.json differ: run cargo xtask build-ebpf"
        );
    }

    #[test]
    fn stack_is_enough_for_older_kernels() {
        let object = fs::read(object_path()).expect("run cargo xtask build-ebpf");
        stack::check(&object).expect("little stack");
    }
}
