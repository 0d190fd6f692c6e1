//! The errors of the TOML library in the words of people who write files, and not of
//! those who write Rust.

use super::similar::closest;

/// The names of types in the messages of the library, and those that files have.
const EXPECTED: [(&str, &str); 7] = [
    ("a sequence", "a list in brackets"),
    ("a string", "a text in quotes"),
    ("a borrowed string", "a text in quotes"),
    ("a boolean", "true or false"),
    ("u32", "a whole number"),
    ("f64", "a number"),
    ("path string", "a path in quotes"),
];

/// The beginnings of values in the messages of the library.
const FOUND: [(&str, &str); 8] = [
    ("string ", "the text "),
    ("integer ", "the number "),
    ("floating point ", "the number "),
    ("boolean ", ""),
    ("sequence", "a list"),
    ("map", "a table"),
    ("datetime", "a time"),
    ("unit value", "nothing"),
];

/// Keys and values that the library lists and people need not know.
const HIDDEN: [&str; 1] = ["tc-clsact"];

/// The message with its place in the file.
pub(super) fn text(error: &toml::de::Error) -> String {
    let message = error.message();
    match plain(message) {
        Some(plain) => error.to_string().replacen(message, &plain, 1),
        None => error.to_string(),
    }
}

/// Another wording, if the library has the type system speak.
fn plain(message: &str) -> Option<String> {
    for (prefix, what) in [("unknown field `", "key"), ("unknown variant `", "value")] {
        if let Some(rest) = message.strip_prefix(prefix) {
            let (word, rest) = rest.split_once('`')?;
            return Some(unknown(what, word, rest));
        }
    }
    let rest = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    let kind = EXPECTED.iter().find(|(name, _)| *name == expected);
    let expected = kind.map_or(expected, |(_, plain)| plain);
    let found = FOUND
        .iter()
        .find_map(|(name, plain)| Some(format!("{plain}{}", found.strip_prefix(name)?)))
        .unwrap_or_else(|| found.to_owned());
    Some(format!("expected {expected}, found {found}"))
}

/// The message on a word that is none of those in backticks.
fn unknown(what: &str, word: &str, expected: &str) -> String {
    let known: Vec<_> = expected
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| !HIDDEN.contains(name))
        .collect();
    match closest(word, known.iter().copied()) {
        Some(meant) => format!("unknown {what} `{word}`; did you mean `{meant}`?"),
        None => format!(
            "unknown {what} `{word}`; expected one of {}",
            known.join(", ")
        ),
    }
}
