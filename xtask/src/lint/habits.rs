//! Habits that the project gives up: how many of each there are, and where.
//!
//! The numbers in [`super::allowed`] may only fall.

use std::collections::BTreeSet;

use super::functions::{bare_bools, functions};
use super::rust::{Kind, Token, code, tokens};
use super::workspace::Source;

/// A function takes at most so many parameters, apart from `self`.
const PARAMETERS: usize = 4;

/// The habits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Habit {
    /// A doc comment that begins without a subject of its own.
    DocWord,
    /// A value that is packed into an integer by hand.
    HandPacked,
    /// A function with too many parameters.
    ManyParameters,
    /// A call that passes a bare `true` or `false` to a function of ours.
    BareBool,
}

/// All habits.
pub const HABITS: [Habit; 4] = [
    Habit::DocWord,
    Habit::HandPacked,
    Habit::ManyParameters,
    Habit::BareBool,
];

/// One occurrence of a habit.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub habit: Habit,
    /// The crate, or the tests of a crate.
    pub group: &'static str,
    pub path: String,
    pub line: usize,
    pub what: String,
}

impl Habit {
    /// The rule that the habit breaks.
    pub fn advice(self) -> &'static str {
        match self {
            Self::DocWord => "a doc comment begins with its subject, not with such a word",
            Self::HandPacked => "to_word and from_word belong into packed.rs of portredir-common",
            Self::ManyParameters => "more than four parameters: give them a struct",
            Self::BareBool => "a bare bool as an argument: give it an enum",
        }
    }
}

/// All habits in the sources.
pub fn find(sources: &[Source]) -> Vec<Found> {
    let takers = takers_of_bools(sources);
    let mut all = Vec::new();
    for source in sources {
        let mut add = |habit, line, what: &str| {
            all.push(Found {
                habit,
                group: source.group(),
                path: source.path.clone(),
                line,
                what: what.to_owned(),
            });
        };
        for (line, what) in weak_docs(&tokens(&source.text)) {
            add(Habit::DocWord, line, what);
        }
        let code = code(&source.text);
        if source.path != "portredir-common/src/packed.rs" {
            let words = code
                .iter()
                .filter(|token| matches!(token.word(), "to_word" | "from_word"));
            words.for_each(|word| add(Habit::HandPacked, word.line, word.text));
        }
        for function in functions(&code) {
            if function.parameters > PARAMETERS && !function.is_foreign {
                add(Habit::ManyParameters, function.line, function.name);
            }
        }
        for call in bare_bools(&code) {
            if takers.contains(call.callee) {
                add(Habit::BareBool, call.line, call.callee);
            }
        }
    }
    all
}

/// The names of functions of ours that take a bool. A method of the standard
/// library of the same name is taken for ours.
fn takers_of_bools(sources: &[Source]) -> BTreeSet<&str> {
    let names = sources.iter().flat_map(|source| {
        let functions = functions(&code(&source.text));
        let takers = functions.into_iter().filter(|function| function.takes_bool);
        takers.map(|function| function.name).collect::<Vec<_>>()
    });
    names.collect()
}

/// The lines on which a doc comment begins with a word without a meaning of its
/// own, and the comment.
fn weak_docs<'a>(tokens: &[Token<'a>]) -> Vec<(usize, &'a str)> {
    let begins = |at: usize| {
        let is_doc = tokens[at].kind == Kind::Doc;
        let before = at.checked_sub(1).map(|at| &tokens[at]);
        let goes_on = before
            .is_some_and(|before| before.kind == Kind::Doc && before.line + 1 == tokens[at].line);
        is_doc && !goes_on
    };
    let docs = (0..tokens.len()).filter(|at| begins(*at));
    let docs = docs.map(|at| (tokens[at].line, tokens[at].text.trim()));
    docs.filter(|(_, text)| is_weak(text)).collect()
}

fn is_weak(comment: &str) -> bool {
    let first = comment.split(|c: char| !c.is_alphanumeric()).next();
    let word = first.unwrap_or_default();
    comment.starts_with("The same")
        || ["It", "Its", "Of", "As", "They", "Who", "Whose", "What"].contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(Habit, usize)> {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let found = find(&[source]).into_iter();
        found.map(|found| (found.habit, found.line)).collect()
    }

    #[test]
    fn doc_comments_begin_with_a_subject() {
        let text = "//! What it is.\n\n/// Rules.\n/// As many as there are.\nfn f() {}\n\
            /// The same, and more.\nfn g() {}\n/// Its name.\n/// Italic.\n/// It's so.\nfn h() {}\n\
            // Of no interest.\n/// Whatever.\nfn i() {}\n";
        let lines = [1, 6, 8].map(|line| (Habit::DocWord, line));
        assert_eq!(found("portredir/src/rule.rs", text), lines);
    }

    #[test]
    fn words_are_packed_in_one_file() {
        let text = "fn f() { x.to_word() } // from_word";
        assert_eq!(
            found("portredir-common/src/flow.rs", text),
            [(Habit::HandPacked, 1)]
        );
        assert_eq!(found("portredir-common/src/packed.rs", text), []);
    }

    #[test]
    fn parameters_are_few() {
        let text = "fn f(&self, a: u8, b: u8, c: u8, d: u8) {}\n\
            fn g(a: u8, b: u8, c: u8, d: u8, e: u8) {}\n\
            extern \"C\" fn h(a: u8, b: u8, c: u8, d: u8, e: u8) {}\n";
        assert_eq!(
            found("portredir/src/rule.rs", text),
            [(Habit::ManyParameters, 2)]
        );
    }

    #[test]
    fn bare_bools_go_to_functions_of_ours() {
        let text = "fn set(is_on: bool) {}\nfn f() {\n set(true);\n x.set_nonblocking(true);\n}\n";
        assert_eq!(found("portredir/src/rule.rs", text), [(Habit::BareBool, 3)]);
    }
}
