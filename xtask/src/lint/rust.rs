//! Rust source as tokens: enough to read `use` lines, find functions and tell
//! code from comments and strings. Types and macros are not understood.

use std::ops::Range;

/// The kinds of tokens that the checks tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name or a keyword.
    Word,
    /// A sign: `::`, `->`, `=>` or a single character.
    Sign,
    /// A string, character or number, which is never looked into.
    Literal,
    /// A lifetime or a label.
    Lifetime,
    /// The text of a line of a doc comment, without its slashes.
    Doc,
}

/// A token and its place in the file.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// The number of the line, counting from 1.
    pub line: usize,
    /// Whether the token belongs to an item under `#[cfg(test)]`.
    pub is_test: bool,
}

/// All tokens of a file, doc comments among them.
pub fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut scanner = Scanner {
        source,
        at: 0,
        line: 1,
    };
    let mut tokens = Vec::new();
    while let Some((kind, range, line)) = scanner.next() {
        let text = &source[range];
        tokens.push(Token {
            kind,
            text,
            line,
            is_test: false,
        });
    }
    mark_tests(&mut tokens);
    tokens
}

/// The tokens of a file that the compiler sees, without doc comments.
pub fn code(source: &str) -> Vec<Token<'_>> {
    let mut tokens = tokens(source);
    tokens.retain(|token| token.kind != Kind::Doc);
    tokens
}

/// The position after the bracket that closes the one at `open`.
pub fn after_bracket(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.sign() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

impl<'a> Token<'a> {
    /// The text of a sign, or nothing: a string that contains a bracket is none.
    pub fn sign(&self) -> &'a str {
        self.text_of(Kind::Sign)
    }

    /// The text of a word, or nothing.
    pub fn word(&self) -> &'a str {
        self.text_of(Kind::Word)
    }

    fn text_of(&self, kind: Kind) -> &'a str {
        if self.kind == kind { self.text } else { "" }
    }
}

/// Marks each item that follows `#[cfg(test)]` or `#[cfg(all(test, …))]`.
fn mark_tests(tokens: &mut [Token]) {
    let mut at = 0;
    while at < tokens.len() {
        let Some(mut end) = after_test_attribute(&tokens[at..]).map(|count| at + count) else {
            at += 1;
            continue;
        };
        while end < tokens.len() {
            match tokens[end].sign() {
                ";" => break,
                "{" => {
                    end = after_bracket(tokens, end) - 1;
                    break;
                }
                "(" | "[" => end = after_bracket(tokens, end),
                _ => end += 1,
            }
        }
        let end = (end + 1).min(tokens.len());
        for token in &mut tokens[at..end] {
            token.is_test = true;
        }
        at = end;
    }
}

/// The length of an attribute that makes an item a test's, if one begins here.
fn after_test_attribute(tokens: &[Token]) -> Option<usize> {
    let starts = |words: &[&str]| {
        let texts = tokens.iter().map(|token| token.text);
        words.len() <= tokens.len() && texts.zip(words).all(|(text, word)| text == *word)
    };
    let is_test = starts(&["#", "[", "cfg", "(", "test", ")", "]"])
        || starts(&["#", "[", "cfg", "(", "all", "(", "test"])
        || starts(&["#", "[", "test", "]"]);
    is_test.then(|| after_bracket(tokens, 1))
}

struct Scanner<'a> {
    source: &'a str,
    at: usize,
    line: usize,
}

impl Scanner<'_> {
    /// The kind, the bytes and the line of the next token.
    fn next(&mut self) -> Option<(Kind, Range<usize>, usize)> {
        loop {
            self.skip(|byte| byte.is_ascii_whitespace());
            let (start, line) = (self.at, self.line);
            let first = self.byte(0)?;
            let kind = match first {
                b'/' if self.byte(1) == Some(b'/') => {
                    self.skip(|byte| byte != b'\n');
                    match doc(&self.source[start..self.at]) {
                        Some(text) => {
                            return Some((Kind::Doc, self.at - text.len()..self.at, line));
                        }
                        None => continue,
                    }
                }
                b'/' if self.byte(1) == Some(b'*') => {
                    self.skip_block_comment();
                    continue;
                }
                b'"' => self.string(),
                b'\'' => self.quote(),
                b'0'..=b'9' => self.number(),
                _ if is_word(first) => self.word(),
                _ => self.sign(),
            };
            return Some((kind, start..self.at, line));
        }
    }

    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.source.as_bytes().get(self.at + ahead).copied()
    }

    fn advance(&mut self, bytes: usize) {
        let end = (self.at + bytes).min(self.source.len());
        let passed = &self.source.as_bytes()[self.at..end];
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at = end;
    }

    fn skip(&mut self, is_skipped: impl Fn(u8) -> bool) {
        let bytes = self.rest().bytes();
        self.advance(bytes.take_while(|byte| is_skipped(*byte)).count());
    }

    /// Passes everything up to and with `end`.
    fn skip_past(&mut self, end: &str) {
        let rest = self.rest();
        self.advance(rest.find(end).map_or(rest.len(), |at| at + end.len()));
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0;
        loop {
            let rest = self.rest();
            let step = if rest.starts_with("/*") {
                depth += 1;
                2
            } else if rest.starts_with("*/") {
                depth -= 1;
                2
            } else {
                rest.chars().next().map_or(0, char::len_utf8)
            };
            self.advance(step);
            if depth == 0 || step == 0 {
                return;
            }
        }
    }

    /// A string with escapes, from its first quote.
    fn string(&mut self) -> Kind {
        self.advance(1);
        loop {
            self.skip(|byte| byte != b'"' && byte != b'\\');
            let is_escape = self.byte(0) == Some(b'\\');
            self.advance(if is_escape { 2 } else { 1 });
            if !is_escape {
                return Kind::Literal;
            }
        }
    }

    /// A character or a lifetime.
    fn quote(&mut self) -> Kind {
        self.advance(1);
        let mut chars = self.rest().chars();
        let first = chars.next();
        if first == Some('\\') {
            self.advance(2);
            self.skip_past("'");
        } else if chars.next() == Some('\'') {
            self.skip_past("'");
        } else {
            self.skip(is_word);
            return Kind::Lifetime;
        }
        Kind::Literal
    }

    fn number(&mut self) -> Kind {
        self.skip(is_word);
        let has_fraction = self.byte(1).is_some_and(|byte| byte.is_ascii_digit());
        if self.byte(0) == Some(b'.') && has_fraction {
            self.advance(1);
            self.skip(is_word);
        }
        Kind::Literal
    }

    /// A word, or the string whose prefix it is.
    fn word(&mut self) -> Kind {
        let start = self.at;
        self.skip(is_word);
        let prefix = &self.source[start..self.at];
        let is_raw = matches!(prefix, "r" | "br" | "cr");
        let hashes = self.rest().bytes().take_while(|byte| *byte == b'#').count();
        match (prefix, self.byte(0), self.byte(hashes)) {
            _ if is_raw && self.byte(hashes) == Some(b'"') => {
                self.advance(hashes + 1);
                self.skip_past(&format!("\"{}", "#".repeat(hashes)));
                Kind::Literal
            }
            ("b" | "c", Some(b'"'), _) => self.string(),
            ("b", Some(b'\''), _) => self.quote(),
            ("r", Some(b'#'), Some(next)) if hashes == 1 && is_word(next) => {
                self.advance(1);
                self.skip(is_word);
                Kind::Word
            }
            _ => Kind::Word,
        }
    }

    fn sign(&mut self) -> Kind {
        let is_long = ["::", "->", "=>"]
            .iter()
            .any(|sign| self.rest().starts_with(sign));
        self.advance(if is_long { 2 } else { 1 });
        Kind::Sign
    }
}

/// The text of a line of a doc comment; `////` begins none.
fn doc(comment: &str) -> Option<&str> {
    let is_plain = comment.starts_with("////");
    let text = comment.strip_prefix("///").or(comment.strip_prefix("//!"));
    text.filter(|_| !is_plain)
}

/// Letters outside ASCII are several bytes, all of which belong to a word.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests;
