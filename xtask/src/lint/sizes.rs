//! The sizes of files and functions, as a table and as limits.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::functions::functions;
use super::rust::code;
use super::workspace::{Part, Source};

/// The longest that a file may be, in lines.
pub const FILE: usize = 500;

/// The longest that a function may be, in lines.
pub const FUNCTION: usize = 60;

/// A file or a function with its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sized {
    /// The crate, or the tests of a crate.
    pub group: &'static str,
    /// The path of the file, or the name of the function.
    pub name: String,
    /// The place for messages: the path, and for a function the line.
    pub place: String,
    pub lines: usize,
}

/// The lengths of all files.
pub fn files(sources: &[Source]) -> Vec<Sized> {
    let files = sources.iter().map(|source| Sized {
        group: source.group(),
        name: source.path.clone(),
        place: source.path.clone(),
        lines: source.text.lines().count(),
    });
    files.collect()
}

/// The lengths of all functions.
pub fn all_functions(sources: &[Source]) -> Vec<Sized> {
    let mut all = Vec::new();
    for source in sources {
        for function in functions(&code(&source.text)) {
            let part = if function.is_test {
                Part::Test
            } else {
                Part::Program
            };
            all.push(Sized {
                group: source.group_of(part),
                name: function.name.to_owned(),
                place: format!("{}:{}", source.path, function.line),
                lines: function.lines,
            });
        }
    }
    all
}

/// A table with the number of files and lines, the longest file and the longest
/// function of each crate.
pub fn table(files: &[Sized], functions: &[Sized]) -> String {
    let mut groups: BTreeMap<&str, Vec<&Sized>> = BTreeMap::new();
    for file in files {
        groups.entry(file.group).or_default().push(file);
    }
    let mut text = format!(
        "{:<24}{:>6}{:>8}  {:<52}longest function\n",
        "crate", "files", "lines", "longest file"
    );
    for (group, files) in groups {
        let lines: usize = files.iter().map(|file| file.lines).sum();
        let file = files.iter().max_by_key(|file| file.lines);
        let function = functions.iter().filter(|function| function.group == group);
        let function = function.max_by_key(|function| function.lines);
        let sized = |sized: &Sized| format!("{} {}", sized.lines, sized.name);
        let placed =
            |function: &Sized| format!("{} {} ({})", function.lines, function.name, function.place);
        let _ = writeln!(
            text,
            "{group:<24}{:>6}{lines:>8}  {:<52}{}",
            files.len(),
            file.map_or(String::new(), |file| sized(file)),
            function.map_or(String::new(), placed)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_of_each_crate_are_shown() {
        let source = |path: &str, text: &str| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let test = "#[cfg(test)]\nmod tests {\n fn c() {\n\n\n }\n}\n";
        let sources = [
            source("portredir/src/rule.rs", &format!("fn a() {{\n}}\n{test}")),
            source("portredir/src/plan.rs", "fn b() {}\n"),
            source("portredir/tests/host.rs", "fn d() {}\n"),
        ];
        let table = table(&files(&sources), &all_functions(&sources));
        let lines: Vec<_> = table.lines().map(|line| line.split_whitespace()).collect();
        let line = |at: usize| lines[at].clone().collect::<Vec<_>>().join(" ");
        assert_eq!(
            line(1),
            "portredir 2 10 9 portredir/src/rule.rs 2 a (portredir/src/rule.rs:1)"
        );
        assert_eq!(
            line(2),
            "portredir tests 1 1 1 portredir/tests/host.rs 4 c (portredir/src/rule.rs:5)"
        );
    }
}
