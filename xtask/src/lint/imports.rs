//! Which file of the workspace imports which, by the paths in its sources.
//!
//! A path counts whether it stands in a `use` or in an expression. A path that
//! begins with an unknown name is taken for one of an external crate.

use std::collections::BTreeMap;

use super::rust::{Kind, Token, code};

/// A crate whose files import each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crate {
    /// The folder of the crate.
    pub folder: &'static str,
    /// The name of the library in paths.
    pub name: &'static str,
    /// The file that the modules hang on, below `src`.
    pub root: &'static str,
}

/// The crates that have walls.
pub const CRATES: [Crate; 4] = [
    Crate {
        folder: "portredir-common",
        name: "portredir_common",
        root: "lib.rs",
    },
    Crate {
        folder: "portredir-ebpf",
        name: "portredir_ebpf",
        root: "main.rs",
    },
    Crate {
        folder: "portredir",
        name: "portredir",
        root: "lib.rs",
    },
    Crate {
        folder: "xtask",
        name: "xtask",
        root: "main.rs",
    },
];

/// A source file, by its path in the workspace.
#[derive(Debug)]
pub struct File {
    pub path: String,
    pub of: Crate,
    /// The names of the modules that lead to the file, from the root of its crate.
    pub module: Vec<String>,
}

/// One place where a file names another file or an external crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub from: String,
    pub line: usize,
    /// The path as it is written, with what `super` and braces stand for.
    pub text: String,
    pub to: Target,
}

/// The end of a path: a file of ours, or an external crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file of the workspace.
    File(String),
    /// An external crate.
    External(String),
}

/// A path as it stands in a source.
struct Path<'a> {
    segments: Vec<&'a str>,
    line: usize,
    /// The inline modules around it.
    inline: Vec<&'a str>,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Use,
    /// `pub use`, which in a parent hands on what its child has.
    PubUse,
    Expression,
}

/// The files of the workspace, by crate and module.
pub struct Modules {
    files: BTreeMap<(&'static str, Vec<String>), File>,
}

impl Modules {
    /// Takes the paths of source files. Those of tests are left out.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut files = BTreeMap::new();
        for path in paths {
            if let Some(file) = file(path) {
                files.insert((file.of.name, file.module.clone()), file);
            }
        }
        Self { files }
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.files.values()
    }

    /// All imports of a file.
    pub fn imports(&self, file: &File, source: &str) -> Vec<Import> {
        let paths = paths(&code(source));
        let imports = paths.iter().filter_map(|path| self.import(file, path));
        imports.collect()
    }

    fn import(&self, file: &File, path: &Path) -> Option<Import> {
        let to = self.target(file, path)?;
        let is_own = to == Target::File(file.path.clone());
        // The parent makes what its child has a part of its own.
        let is_handed_on = path.form == Form::PubUse && self.is_child(file, &to);
        (!is_own && !is_handed_on).then(|| Import {
            from: file.path.clone(),
            line: path.line,
            text: path.segments.join("::"),
            to,
        })
    }

    fn is_child(&self, parent: &File, target: &Target) -> bool {
        let path = match target {
            Target::File(path) => path,
            Target::External(_) => return false,
        };
        self.files().any(|file| {
            file.path == *path && file.of == parent.of && file.module.starts_with(&parent.module)
        })
    }

    fn target(&self, file: &File, path: &Path) -> Option<Target> {
        let (first, rest) = path.segments.split_first()?;
        let mut here = file.module.clone();
        here.extend(path.inline.iter().map(|name| (*name).to_owned()));
        let in_crate = |name, module: &[String]| self.closest(name, module).map(Target::File);
        let joined = |base: &[String], rest: &[&str]| -> Vec<String> {
            let rest = rest.iter().map(|name| (*name).to_owned());
            base.iter().cloned().chain(rest).collect()
        };
        match *first {
            "crate" => in_crate(file.of.name, &joined(&[], rest)),
            "self" => in_crate(file.of.name, &joined(&here, rest)),
            "super" => {
                let supers = path.segments.iter().take_while(|name| **name == "super");
                let ups = supers.count();
                here.truncate(here.len().saturating_sub(ups));
                in_crate(file.of.name, &joined(&here, &path.segments[ups..]))
            }
            name if CRATES.iter().any(|of| of.name == name) => in_crate(name, &joined(&[], rest)),
            name => {
                let child = joined(&here, &[name]);
                if self.files.contains_key(&(file.of.name, child)) {
                    return in_crate(file.of.name, &joined(&here, &path.segments));
                }
                // In an expression, types and variables begin paths too.
                let is_crate = path.form != Form::Expression || EXTERNAL.contains(&name);
                is_crate.then(|| Target::External(name.to_owned()))
            }
        }
    }

    /// The file that holds a module or the item of this path.
    fn closest(&self, name: &str, module: &[String]) -> Option<String> {
        let of = CRATES.iter().find(|of| of.name == name)?.name;
        let lengths = (0..=module.len()).rev();
        let mut found = lengths.filter_map(|len| self.files.get(&(of, module[..len].to_vec())));
        found.next().map(|file| file.path.clone())
    }
}

/// External crates that the walls speak of.
const EXTERNAL: [&str; 3] = ["anyhow", "aya", "tokio"];

/// The file of a path, unless it belongs to no crate or to tests.
fn file(path: &str) -> Option<File> {
    let of = CRATES.into_iter().find(|of| {
        let below = path.strip_prefix(of.folder);
        below.is_some_and(|below| below.starts_with("/src/"))
    })?;
    let below = path.strip_prefix(of.folder)?.strip_prefix("/src/")?;
    let mut module: Vec<String> = below
        .strip_suffix(".rs")?
        .split('/')
        .map(str::to_owned)
        .collect();
    if module.iter().any(|name| name == "tests") {
        return None;
    }
    if below == of.root {
        module.clear();
    }
    if module.last().is_some_and(|name| name == "mod") {
        module.pop();
    }
    Some(File {
        path: path.to_owned(),
        of,
        module,
    })
}

/// All paths in a source, apart from tests.
fn paths<'a>(tokens: &[Token<'a>]) -> Vec<Path<'a>> {
    let mut paths = Vec::new();
    // The inline modules around a token, and at which token each ends.
    let mut inline: Vec<(&str, usize)> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        inline.retain(|(_, end)| at < *end);
        let token = tokens[at];
        let next = |ahead: usize| tokens.get(at + ahead);
        let next_sign = |ahead| next(ahead).map_or("", Token::sign);
        let names = || inline.iter().map(|(name, _)| *name).collect();
        if token.is_test {
            at += 1;
        } else if token.word() == "mod" && next_sign(2) == "{" {
            inline.push((
                tokens[at + 1].text,
                super::rust::after_bracket(tokens, at + 2),
            ));
            at += 3;
        } else if token.word() == "use" && next_sign(1) != "<" {
            let before = at.checked_sub(1).map(|before| tokens[before].text);
            let is_public = matches!(before, Some("pub" | ")"));
            let form = if is_public { Form::PubUse } else { Form::Use };
            let first = paths.len();
            at = tree(tokens, at + 1, &[], &mut paths);
            for path in &mut paths[first..] {
                path.inline = names();
                path.form = form;
            }
        } else if token.kind == Kind::Word && next_sign(1) == "::" {
            let mut segments = vec![token.text];
            let line = token.line;
            at += 1;
            while let [colons, name, ..] = &tokens[at..]
                && colons.sign() == "::"
                && name.kind == Kind::Word
            {
                segments.push(name.text);
                at += 2;
            }
            paths.push(Path {
                segments,
                line,
                inline: names(),
                form: Form::Expression,
            });
            // A turbofish is passed, so that the word behind it begins no path.
            at += usize::from(tokens.get(at).is_some_and(|token| token.sign() == "::"));
        } else {
            at += 1;
        }
    }
    paths
}

/// Adds the paths of a use tree; returns where it ends.
fn tree<'a>(
    tokens: &[Token<'a>],
    mut at: usize,
    prefix: &[&'a str],
    paths: &mut Vec<Path<'a>>,
) -> usize {
    let mut segments = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        match token.text {
            "::" => at += 1,
            "as" => at += 2,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = tree(tokens, at, &segments, paths);
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
                }
                return at + 1;
            }
            "*" => at += 1,
            name if token.kind == Kind::Word => {
                // `a::{self}` is `a`.
                if name != "self" || segments.is_empty() {
                    segments.push(name);
                }
                at += 1;
            }
            _ => break,
        }
    }
    let line = tokens
        .get(at.saturating_sub(1))
        .map_or(0, |token| token.line);
    paths.push(Path {
        segments,
        line,
        inline: Vec::new(),
        form: Form::Use,
    });
    at
}

#[cfg(test)]
mod tests;
