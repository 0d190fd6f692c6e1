//! Functions of a source: their length and their parameters.

use super::rust::{Kind, Token, after_bracket};

/// A function with a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Function<'a> {
    pub name: &'a str,
    /// The line of `fn`.
    pub line: usize,
    /// The lines from `fn` to the brace that closes it.
    pub lines: usize,
    /// How many parameters there are, apart from `self`.
    pub parameters: usize,
    /// Whether a parameter is a bare `bool`.
    pub takes_bool: bool,
    /// Whether another language decides the parameters.
    pub is_foreign: bool,
    pub is_test: bool,
}

/// A call that has a bare `true` or `false` among its arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct BareBool<'a> {
    /// The function or method that is called.
    pub callee: &'a str,
    pub line: usize,
}

/// All functions, also those within others.
pub fn functions<'a>(tokens: &[Token<'a>]) -> Vec<Function<'a>> {
    let places = (0..tokens.len()).filter(|at| tokens[*at].word() == "fn");
    places.filter_map(|at| function(tokens, at)).collect()
}

fn function<'a>(tokens: &[Token<'a>], at: usize) -> Option<Function<'a>> {
    let name = tokens.get(at + 1).filter(|name| name.kind == Kind::Word)?;
    let open = after_generics(tokens, at + 2);
    tokens.get(open).filter(|token| token.sign() == "(")?;
    let close = after_bracket(tokens, open);
    let parameters = split(&tokens[open + 1..close - 1]);
    let named = parameters.iter().filter(|parameter| !is_self(parameter));
    let is_bool = |parameter: &&[Token]| {
        let texts: Vec<_> = parameter.iter().map(|token| token.text).collect();
        texts.ends_with(&[":", "bool"])
    };
    let end = after_body(tokens, close);
    let abi = at.checked_sub(1).map_or("", |before| tokens[before].text);
    Some(Function {
        name: name.text,
        line: tokens[at].line,
        lines: tokens[end - 1].line - tokens[at].line + 1,
        takes_bool: named.clone().any(is_bool),
        parameters: named.count(),
        is_foreign: abi.starts_with('"') || abi == "extern",
        is_test: tokens[at].is_test,
    })
}

/// The position after `<…>`, if that stands at `at`.
fn after_generics(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(at) {
        match token.sign() {
            "<" => depth += 1,
            ">" => depth = depth.saturating_sub(1),
            _ if depth == 0 => return at,
            _ => {}
        }
    }
    tokens.len()
}

/// The position after the body, or after the semicolon of a function without
/// one.
fn after_body(tokens: &[Token], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.sign() {
            ";" => return at + 1,
            "{" => return after_bracket(tokens, at),
            "(" | "[" => at = after_bracket(tokens, at),
            _ => at += 1,
        }
    }
    tokens.len()
}

/// Parameters between their commas.
fn split<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0_usize;
    let parts = tokens.split(|token| {
        match token.sign() {
            "(" | "[" | "{" | "<" => depth += 1,
            ")" | "]" | "}" | ">" => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && token.sign() == ","
    });
    parts.filter(|part| !part.is_empty()).collect()
}

fn is_self(parameter: &[Token]) -> bool {
    let mut pattern = parameter.iter().take_while(|token| token.sign() != ":");
    pattern.any(|token| token.word() == "self")
}

/// Calls with a bare `true` or `false`, apart from macros, types and variants.
pub fn bare_bools<'a>(tokens: &[Token<'a>]) -> Vec<BareBool<'a>> {
    let mut found = Vec::new();
    // What is called by the innermost bracket that is open, if that is a call.
    let mut calls: Vec<Option<&str>> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.sign() {
            "(" => calls.push(callee(tokens, at)),
            "[" | "{" => calls.push(None),
            ")" | "]" | "}" => drop(calls.pop()),
            _ => {}
        }
        let before = at.checked_sub(1).map_or("", |at| tokens[at].sign());
        let after = tokens.get(at + 1).map_or("", Token::sign);
        let is_argument = matches!(before, "(" | ",") && matches!(after, ")" | ",");
        let is_bool = matches!(token.word(), "true" | "false");
        if let (true, Some(Some(callee))) = (is_bool && is_argument, calls.last()) {
            found.push(BareBool {
                callee,
                line: token.line,
            });
        }
    }
    found
}

/// The name of the function that the bracket at `open` calls.
fn callee<'a>(tokens: &[Token<'a>], open: usize) -> Option<&'a str> {
    let mut at = open.checked_sub(1)?;
    if tokens[at].sign() == ">" {
        // A turbofish: the name stands before `::<`.
        while tokens[at].sign() != "<" {
            at = at.checked_sub(1)?;
        }
        at = at.checked_sub(2)?;
    }
    let is_definition = at
        .checked_sub(1)
        .is_some_and(|at| tokens[at].word() == "fn");
    let name = tokens[at].word();
    let is_function = name.starts_with(|first: char| first.is_lowercase() || first == '_');
    (is_function && !is_definition).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::super::rust::code;
    use super::*;

    #[test]
    fn lengths_end_at_the_closing_brace() {
        let source = "
            fn a() {
                let text = \"}\"; // }
                let brace = '}';
            }
            trait T { fn b(&self) -> [u8; 2]; }
            fn c<F: Fn(u8) -> bool>(f: F)
            where
                F: Copy,
            {}";
        let tokens = code(source);
        let lengths = functions(&tokens);
        let lengths: Vec<_> = lengths
            .iter()
            .map(|it| (it.name, it.line, it.lines))
            .collect();
        assert_eq!(lengths, [("a", 2, 4), ("b", 6, 1), ("c", 7, 4)]);
    }

    #[test]
    fn parameters_are_counted_without_self() {
        let source = "
            fn a(&mut self, x: u8, (y, z): (u8, u8),) {}
            fn b<const N: usize>(self: Box<Self>, x: HashMap<u8, u8>, f: fn(u8, u8) -> u8) {}
            extern \"C\" fn c(a: u8, b: u8, c: u8, d: u8, e: u8) {}
            fn d(mut is_new: bool) {}
            fn e(x: Option<bool>) {}
            type F = fn(u8, u8);";
        let tokens = code(source);
        let functions = functions(&tokens);
        let counts: Vec<_> = functions
            .iter()
            .map(|it| (it.name, it.parameters))
            .collect();
        assert_eq!(counts, [("a", 2), ("b", 2), ("c", 5), ("d", 1), ("e", 1)]);
        let foreign: Vec<_> = functions.iter().map(|it| it.is_foreign).collect();
        assert_eq!(foreign, [false, false, true, false, false]);
        let bools = functions.iter().filter(|it| it.takes_bool);
        assert_eq!(bools.map(|it| it.name).collect::<Vec<_>>(), ["d"]);
    }

    #[test]
    fn bare_bools_are_arguments_of_functions() {
        let source = "
            a(true); x.b(1, false, 2); c::<u8>(true);
            assert_eq!(x, true); Some(true); (d)(true, 1); (true, false);
            e([true], y == true, if z { true } else { false });
            match g() { Ok(true) => h(i(false)) }";
        let tokens = code(source);
        let found = bare_bools(&tokens);
        let callees: Vec<_> = found.iter().map(|it| it.callee).collect();
        assert_eq!(callees, ["a", "b", "c", "i"]);
    }
}
