//! One hash over everything that the eBPF object is built from.
//!
//! A plain `cargo test` cannot compile eBPF. By this hash it still finds out that
//! the committed object is stale.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::root::root;

/// The hash of every file and version that decides the object, in hex.
pub fn sha256() -> Result<String> {
    let root = root();
    let mut parts = Vec::new();
    for package in ["portredir-common", "portredir-ebpf"] {
        let manifest = format!("{package}/Cargo.toml");
        let content = read(&root, &manifest)?;
        parts.push((manifest, content));
        collect(&root, &format!("{package}/src"), &mut parts)?;
    }
    parts.sort();
    parts.push(("Cargo.lock".into(), versions(&read(&root, "Cargo.lock")?)));
    parts.push(("Cargo.toml".into(), profile(&read(&root, "Cargo.toml")?)));

    let mut hash = Sha256::new();
    for (name, content) in parts {
        for text in [name, content] {
            // The length keeps text from moving unnoticed to the next part.
            hash.update(u64::try_from(text.len())?.to_le_bytes());
            hash.update(text);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(root: &Path, name: &str) -> Result<String> {
    fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))
}

/// Adds the Rust files below a folder. Other files, as an editor leaves them, do
/// not count.
fn collect(root: &Path, folder: &str, parts: &mut Vec<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder)).with_context(|| format!("read {folder}"))? {
        let entry = entry?;
        let name = format!("{folder}/{}", entry.file_name().display());
        if entry.file_type()?.is_dir() {
            collect(root, &name, parts)?;
        } else if name.ends_with(".rs") {
            let content = read(root, &name)?;
            parts.push((name, content));
        }
    }
    Ok(())
}

/// The part of Cargo.lock about the crates that the kernel side is built with.
fn versions(lock: &str) -> String {
    let is_ours = |package: &&str| package.contains("name = \"aya-ebpf");
    let is_kept = |line: &&str| {
        ["name = ", "version = ", "checksum = "]
            .iter()
            .any(|key| line.starts_with(key))
    };
    let packages = lock.split("[[package]]").filter(is_ours);
    let lines: Vec<_> = packages.flat_map(str::lines).filter(is_kept).collect();
    lines.join("\n")
}

/// The eBPF crate's profile in the root Cargo.toml, without comments.
fn profile(manifest: &str) -> String {
    let lines: Vec<_> = manifest
        .lines()
        .skip_while(|line| *line != "[profile.release.package.portredir-ebpf]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_of_the_kernel_side_count() {
        let lock = "version = 4\n\n\
            [[package]]\nname = \"aya\"\nversion = \"1\"\ndependencies = [\n \"aya-obj\",\n]\n\n\
            [[package]]\nname = \"aya-ebpf\"\nversion = \"2\"\nchecksum = \"ab\"\ndependencies = [\n \"x\",\n]\n";
        assert_eq!(
            versions(lock),
            "name = \"aya-ebpf\"\nversion = \"2\"\nchecksum = \"ab\""
        );
    }

    #[test]
    fn only_the_profile_of_the_kernel_side_counts() {
        let manifest = "[profile.release]\nlto = true\n\n\
            [profile.release.package.portredir-ebpf]\n# Why.\ndebug = 2\n\n[lints]\nx = 1\n";
        assert_eq!(profile(manifest), "debug = 2");
    }

    #[test]
    fn the_workspace_has_both() {
        let root = root();
        let lock = versions(&read(&root, "Cargo.lock").expect("readable"));
        assert!(lock.contains("name = \"aya-ebpf\""), "{lock}");
        let profile = profile(&read(&root, "Cargo.toml").expect("readable"));
        assert!(profile.contains("codegen-units"), "{profile}");
    }
}
