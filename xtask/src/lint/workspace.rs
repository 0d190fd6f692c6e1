//! The Rust sources of the workspace.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The folders that hold sources. Generated ones, as `target`, are not among
/// them.
const FOLDERS: [&str; 7] = [
    "fuzz/fuzz_targets",
    "fuzz/src",
    "portredir-common/src",
    "portredir-ebpf/src",
    "portredir/src",
    "portredir/tests",
    "xtask/src",
];

/// A Rust file.
pub struct Source {
    /// The path in the workspace.
    pub path: String,
    pub text: String,
}

impl Source {
    /// The crate of the file in the tables: tests count apart from the crate
    /// that they belong to.
    pub fn group(&self) -> &'static str {
        self.group_of(Part::Program)
    }

    /// The crate of an item of the file.
    pub fn group_of(&self, part: Part) -> &'static str {
        let names = self.path.split(['/', '.']);
        let is_test = part == Part::Test || names.skip(1).any(|name| name == "tests");
        let (name, tests) = match self.path.split('/').next() {
            Some("portredir-common") => ("portredir-common", "portredir-common tests"),
            Some("portredir-ebpf") => ("portredir-ebpf", "portredir-ebpf tests"),
            Some("portredir") => ("portredir", "portredir tests"),
            Some("xtask") => ("xtask", "xtask tests"),
            _ => ("fuzz", "fuzz"),
        };
        if is_test { tests } else { name }
    }
}

/// Whether an item is under `#[cfg(test)]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Program,
    Test,
}

/// All Rust files of a workspace, by path.
pub fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for folder in FOLDERS {
        collect(root, folder, &mut sources)?;
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn collect(root: &Path, folder: &str, sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder)).with_context(|| format!("read {folder}"))? {
        let entry = entry?;
        let path = format!("{folder}/{}", entry.file_name().display());
        if entry.file_type()?.is_dir() {
            collect(root, &path, sources)?;
        } else if path.ends_with(".rs") {
            let text =
                fs::read_to_string(root.join(&path)).with_context(|| format!("read {path}"))?;
            sources.push(Source { path, text });
        }
    }
    Ok(())
}
