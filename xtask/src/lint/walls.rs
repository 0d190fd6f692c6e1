//! The walls: imports run downwards, only some modules touch the kernel, print or
//! are unsafe, and no files import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::circles;
use super::exceptions::{self, Exception};
use super::floors::{self, PRINT, Privilege, ROOT, UNSAFE, WINGS};
use super::imports::{File, Import, Modules, Target};
use super::rust::{Token, code};
use super::workspace::Source;

/// Something that a wall forbids: once for each pair of files, whatever the number
/// of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub from: String,
    /// The imported file, or what the file does.
    pub to: String,
    /// The lines of `from` that do it.
    pub lines: Vec<usize>,
    /// A text about the first of these lines: the import, the reason, the remedy.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.from)?;
        if let Some(line) = self.lines.first() {
            write!(f, ":{line}")?;
        }
        write!(f, " {}", self.message)?;
        if self.lines.len() > 1 {
            let lines: Vec<_> = self.lines.iter().map(ToString::to_string).collect();
            write!(f, "\n  All lines: {}.", lines.join(", "))?;
        }
        write!(f, "\n    {}", exceptions::line(&self.from, &self.to))
    }
}

/// All that is wrong: violations without an exception, and exceptions without a
/// violation.
pub fn check(sources: &[Source], exceptions: &[Exception]) -> Vec<Violation> {
    let modules = Modules::of(sources.iter().map(|source| source.path.as_str()));
    let mut violations = Vec::new();
    let mut imports = Vec::new();
    for file in modules.files() {
        let source = sources.iter().find(|source| source.path == file.path);
        let Some(source) = source else { continue };
        violations.extend(no_floor(file));
        violations.extend(privileges(file, &source.text));
        for import in modules.imports(file, &source.text) {
            violations.extend(forbidden(&modules, file, &import));
            imports.push(import);
        }
    }
    let mut violations = merged(violations);
    let is_excepted = |from: &str, to: &str| {
        let mut exceptions = exceptions.iter();
        exceptions.any(|exception| (exception.0, exception.1) == (from, to))
    };
    let uphill = pairs(&violations);
    let graph = graph(imports.iter().filter(|import| {
        let to = import.target_name();
        !is_excepted(&import.from, to) && !uphill.contains(&(import.from.as_str(), to))
    }));
    // A circle's exception is needed as long as the import would close one.
    let is_needed = |(from, to, _): &&Exception| {
        let mut imports = imports.iter();
        let is_import = imports.any(|it| (it.from.as_str(), it.target_name()) == (*from, *to));
        uphill.contains(&(*from, *to)) || is_import && circles::leads(&graph, to, from)
    };
    let stale: Vec<_> = exceptions
        .iter()
        .filter(|it| !is_needed(it))
        .map(stale)
        .collect();
    let circles = circles::cuts(&graph);
    let circles: Vec<_> = circles.iter().map(|cut| circle(&imports, cut)).collect();
    violations.retain(|found| !is_excepted(&found.from, &found.to));
    violations.extend(circles);
    violations.extend(stale);
    violations
}

/// One violation for each pair of a file and what it imports or does.
fn merged(violations: Vec<Violation>) -> Vec<Violation> {
    let mut merged: Vec<Violation> = Vec::new();
    for found in violations {
        let is_same = |other: &&mut Violation| other.from == found.from && other.to == found.to;
        match merged.iter_mut().find(is_same) {
            Some(first) => first.lines.extend(found.lines),
            None => merged.push(found),
        }
    }
    for found in &mut merged {
        found.lines.sort_unstable();
        found.lines.dedup();
    }
    merged
}

fn stale((from, to, _): &Exception) -> Violation {
    Violation {
        from: (*from).to_owned(),
        to: (*to).to_owned(),
        lines: Vec::new(),
        message: format!(
            "no longer needs its exception for {to}: delete this line in \
             xtask/src/lint/exceptions.rs"
        ),
    }
}

fn pairs(violations: &[Violation]) -> BTreeSet<(&str, &str)> {
    let pairs = violations.iter();
    pairs
        .map(|found| (found.from.as_str(), found.to.as_str()))
        .collect()
}

impl Import {
    fn target_name(&self) -> &str {
        match &self.to {
            Target::File(name) | Target::External(name) => name,
        }
    }
}

/// Which files each file imports, and how often.
fn graph<'a>(imports: impl Iterator<Item = &'a Import>) -> circles::Graph<'a> {
    let mut graph = circles::Graph::new();
    for import in imports {
        if let Target::File(to) = &import.to {
            let from: &mut BTreeMap<_, _> = graph.entry(&import.from).or_default();
            *from.entry(to.as_str()).or_default() += 1;
        }
    }
    graph
}

/// The violation that an import is by itself.
fn forbidden(modules: &Modules, file: &File, import: &Import) -> Option<Violation> {
    let (why, advice) = match &import.to {
        Target::External(name) => {
            let privilege = floors::privilege_of(name)?;
            return unprivileged(file, import.line, &import.text, privilege);
        }
        Target::File(path) => {
            let to = modules.files().find(|file| file.path == *path)?;
            between(file, to)?
        }
    };
    let to = import.target_name().to_owned();
    let message = format!("imports {} of {to}: {why}. {advice}.", import.text);
    Some(Violation {
        from: import.from.clone(),
        to,
        lines: vec![import.line],
        message,
    })
}

/// Why a file may not import another one, and what to do.
fn between(from: &File, to: &File) -> Option<(String, &'static str)> {
    if from.of != to.of {
        let (_, below) = floors::CRATES_BELOW
            .iter()
            .find(|(folder, _)| *folder == from.of.folder)?;
        let why = format!("{} does not build on {}", from.of.folder, to.of.folder);
        let advice = "Move the item to a crate that both build on";
        return (!below.contains(&to.of.folder)).then_some((why, advice));
    }
    let house = floors::house(from)?;
    let (from_room, to_room) = (floors::room(from), floors::room(to));
    let (from_floor, to_floor) = (house.floor(from_room)?, house.floor(to_room)?);
    let why = if from_room == to_room {
        return None;
    } else if WINGS.contains(&to_room) && from_room != ROOT {
        return Some((
            format!("the wing `{to_room}` is entered by `{ROOT}` alone"),
            "Move the item out of the wing",
        ));
    } else if from_room == "agent" && to_room == "cli" {
        "`agent` never imports `command` or `cli`".to_owned()
    } else if to_floor > from_floor {
        format!(
            "`{from_room}` is on floor {from_floor} and `{to_room}` on floor {to_floor} above it"
        )
    } else if to_floor == from_floor {
        format!("`{from_room}` and `{to_room}` are both on floor {from_floor}")
    } else {
        return None;
    };
    let advice = "Imports run downwards: move the item to a lower floor, or take it as an argument";
    Some((why, advice))
}

/// The violation of a file that uses a privilege of others.
fn unprivileged(file: &File, line: usize, what: &str, privilege: &Privilege) -> Option<Violation> {
    if privilege.is_held_by(file) || !floors::has_floor(file) {
        return None;
    }
    let of_crate = |holder: &&'static str| {
        let (folder, module) = holder.split_once("::")?;
        (folder == file.of.folder).then_some(module)
    };
    let holders: Vec<_> = privilege.holders.iter().filter_map(of_crate).collect();
    let message = format!(
        "has `{what}`, and {} is for {} only. {}.",
        privilege.name,
        if holders.is_empty() {
            "other crates".to_owned()
        } else {
            holders.join(", ")
        },
        privilege.advice,
    );
    Some(Violation {
        from: file.path.clone(),
        to: privilege.name.to_owned(),
        lines: vec![line],
        message,
    })
}

fn no_floor(file: &File) -> Option<Violation> {
    let message = format!(
        "has no floor: move it below one of the modules in xtask/src/lint/floors.rs, or give \
         `{}` a floor there",
        floors::room(file),
    );
    (!floors::has_floor(file)).then(|| Violation {
        from: file.path.clone(),
        to: NO_FLOOR.to_owned(),
        lines: Vec::new(),
        message,
    })
}

/// The places where a file is unsafe or prints without the privilege.
fn privileges(file: &File, source: &str) -> Vec<Violation> {
    let mut tokens = code(source);
    tokens.retain(|token| !token.is_test);
    let mut violations = Vec::new();
    for at in 0..tokens.len() {
        let line = tokens[at].line;
        let found = match tokens[at].word() {
            "unsafe" => unprivileged(file, line, "unsafe", &UNSAFE),
            _ => prints(&tokens, at).and_then(|what| unprivileged(file, line, what, &PRINT)),
        };
        violations.extend(found);
    }
    violations
}

/// How an exception names a file without a floor.
const NO_FLOOR: &str = "no floor";

/// The name of the macro or function that prints at this token.
fn prints<'a>(tokens: &[Token<'a>], at: usize) -> Option<&'a str> {
    let next = tokens.get(at + 1).map_or("", Token::sign);
    let before = at.checked_sub(1).map_or("", |at| tokens[at].text);
    let name = tokens[at].word();
    let is_printing = match name {
        "print" | "println" | "eprint" | "eprintln" | "dbg" => next == "!",
        // `command.stdout(…)` is a method that prints nothing.
        "stdout" | "stderr" => next == "(" && before != "." && before != "fn",
        _ => false,
    };
    is_printing.then_some(name)
}

/// An import that closes a circle.
fn circle(imports: &[Import], cut: &circles::Cut) -> Violation {
    let find = |from: &str, to: &str| {
        let mut imports = imports.iter();
        imports.find(|import| import.from == from && import.target_name() == to)
    };
    let steps = cut.circle.iter().zip(cut.circle.iter().cycle().skip(1));
    let steps = steps.filter_map(|(from, to)| find(from, to));
    let steps: String = steps
        .map(|it| format!("\n  {}:{} imports {}", it.from, it.line, it.text))
        .collect();
    let message = format!(
        "imports {}, which closes a circle of {} files:{steps}\n  Move what this import \
         needs to a file that both may import, or take it as an argument.",
        cut.to,
        cut.circle.len()
    );
    Violation {
        from: cut.from.to_owned(),
        to: cut.to.to_owned(),
        lines: find(cut.from, cut.to)
            .into_iter()
            .map(|import| import.line)
            .collect(),
        message,
    }
}

#[cfg(test)]
mod tests;
