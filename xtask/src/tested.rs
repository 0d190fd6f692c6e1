//! `docs/TESTED.md`: each run that is asked to replaces its own section.

use std::fs;

use anyhow::{Context, Result};

use crate::root::root;

const HEAD: &str = "\
# Tested

Runs of `cargo xtask test` in virtual machines wrote the sections below, with `--record`. A section is of the last such
run.
";

/// Writes the section of a run.
pub fn record(title: &str, text: &str) -> Result<()> {
    let path = root().join("docs/TESTED.md");
    let before = fs::read_to_string(&path).unwrap_or_default();
    fs::write(&path, replaced(&before, title, text)).context("write docs/TESTED.md")
}

/// The document with a section in the place of that of the same title. Sections are sorted.
fn replaced(document: &str, title: &str, text: &str) -> String {
    let sections = document.split("\n## ").skip(1).filter_map(|section| {
        let (title, text) = section.split_once('\n')?;
        Some((title.to_owned(), text.trim().to_owned()))
    });
    let mut sections: std::collections::BTreeMap<_, _> = sections.collect();
    sections.insert(title.to_owned(), text.trim().to_owned());
    let sections = sections.iter();
    let sections: String = sections
        .map(|(title, text)| format!("\n## {title}\n\n{text}\n"))
        .collect();
    format!("{HEAD}{sections}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_replaces_its_own_section_alone() {
        let one = replaced("", "systemd on trixie", "old");
        let two = replaced(&one, "kernel 6.1", "| a |\n");
        let three = replaced(&two, "systemd on trixie", "new");
        assert_eq!(
            three,
            format!("{HEAD}\n## kernel 6.1\n\n| a |\n\n## systemd on trixie\n\nnew\n")
        );
    }
}
