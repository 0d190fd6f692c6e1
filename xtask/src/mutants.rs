//! Mutation tests: defects that are put into a copy of the sources, one at a
//! time, to see that the tests find them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::cargo::{self, cargo};
use crate::process;
use crate::root::root;

/// The list of defects.
const LIST: &str = "portredir/tests/mutants.toml";

/// The files and folders that the tests are built from.
const SOURCES: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "fuzz",
    "portredir",
    "portredir-common",
    "portredir-ebpf",
    "xtask",
];

/// The program is not built in the copy: cargo would put a program with a defect
/// into the workspace's target folder.
const PROGRAM: &str = "portredir/src/main.rs";

/// Defects are found within the first few thousand packets.
const PACKETS: &str = "200000";

#[derive(Deserialize)]
struct List {
    mutant: Vec<Mutant>,
}

/// A defect.
#[derive(Deserialize)]
struct Mutant {
    name: String,
    file: PathBuf,
    /// A text that occurs in the file exactly once.
    find: String,
    replace: String,
    /// The tests of `tests/host.rs` that fail with it.
    caught_by: Vec<String>,
}

/// Fails when a named test passes in spite of its defect, or fails without one.
pub fn mutants() -> Result<()> {
    let text = fs::read_to_string(root().join(LIST)).with_context(|| format!("read {LIST}"))?;
    let List { mutant: mutants } = toml::from_str(&text).with_context(|| LIST.to_owned())?;
    let sources = root().join("target/mutants/sources");
    fs::create_dir_all(&sources).context("make a folder for the copy")?;
    for name in SOURCES {
        copy(&root().join(name), &sources.join(name))?;
    }

    let tests: HashSet<_> = mutants
        .iter()
        .flat_map(|mutant| &mutant.caught_by)
        .collect();
    let program = build(&sources)?;
    for test in tests {
        ensure!(passes(&program, test)?, "without a defect, {test} fails");
    }
    let mut survivors = Vec::new();
    for mutant in &mutants {
        let start = Instant::now();
        let file = sources.join(&mutant.file);
        let whole = fs::read_to_string(&file).with_context(|| mutant.file.display().to_string())?;
        fs::write(&file, mutant.of(&whole)?)?;
        let program = build(&sources).with_context(|| mutant.name.clone());
        // The next defect starts from the original.
        fs::write(&file, whole)?;
        let program = program?;
        for test in &mutant.caught_by {
            let is_caught = !passes(&program, test)?;
            let mark = if is_caught { "caught by" } else { "SURVIVES" };
            println!("{}: {mark} {test}", mutant.name);
            if !is_caught {
                survivors.push(format!("{} survives {test}", mutant.name));
            }
        }
        println!("    {:.1} s", start.elapsed().as_secs_f32());
    }
    if !survivors.is_empty() {
        bail!("{}", survivors.join("\n"));
    }
    println!("{} defects, all caught", mutants.len());
    Ok(())
}

impl Mutant {
    /// A file with the defect.
    fn of(&self, whole: &str) -> Result<String> {
        let Self {
            name, file, find, ..
        } = self;
        let count = whole.matches(find).count();
        ensure!(
            count == 1,
            "{name}: `{find}` is {count} times in {}, not once; {LIST} is out of date",
            file.display()
        );
        Ok(whole.replace(find, &self.replace))
    }
}

/// Updates a copy. Unchanged files keep their times, so that cargo does not
/// compile them again.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_file() {
        let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        if fs::read(to).ok().as_ref() != Some(&content) {
            fs::write(to, content).with_context(|| format!("write {}", to.display()))?;
        }
        return Ok(());
    }
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let mut names = HashSet::new();
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let name = entry?.file_name();
        if name != "target" && from.join(&name) != root().join(PROGRAM) {
            copy(&from.join(&name), &to.join(&name))?;
            names.insert(name);
        }
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if names.contains(&entry.file_name()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Builds the host tests in the copy. Dependencies are shared with the
/// workspace.
fn build(sources: &Path) -> Result<PathBuf> {
    let mut command = cargo(&[
        "test",
        "-q",
        "--no-run",
        "-p",
        "portredir",
        "--test",
        "host",
    ]);
    command
        .current_dir(sources)
        .env("CARGO_TARGET_DIR", root().join("target"))
        // Compiling takes longer than running the tests.
        .env("CARGO_PROFILE_TEST_OPT_LEVEL", "0");
    let mut programs = cargo::programs(command)?.into_iter();
    let tests = programs.find(|program| program.kind == "test" && program.name == "host");
    Ok(tests.context("cargo built no tests")?.path)
}

/// Whether a test passes. A test that does not exist is an error.
fn passes(program: &Path, test: &str) -> Result<bool> {
    let mut command = Command::new(program);
    command
        .args(["--exact", test])
        .current_dir(root().join("target/mutants/sources/portredir"))
        .env(
            "CARGO_MANIFEST_DIR",
            root().join("target/mutants/sources/portredir"),
        )
        .env("PORTREDIR_TEST_SEED", "1")
        .env("PORTREDIR_TEST_PACKETS", PACKETS);
    let output = command.output().with_context(|| process::line(&command))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains("running 1 test\n"),
        "there is no test {test}:\n{text}"
    );
    Ok(output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_defect_fits_its_file() {
        let text = fs::read_to_string(root().join(LIST)).expect("the list of defects");
        let List { mutant: mutants } = toml::from_str(&text).expect("a list of defects");
        for mutant in mutants {
            let file = root().join(&mutant.file);
            let whole = fs::read_to_string(&file).unwrap_or_else(|error| {
                panic!("{}: {}: {error}", mutant.name, mutant.file.display())
            });
            mutant.of(&whole).expect("a place for the defect");
        }
    }
}
