//! Sources that a careless scanner would misread.

use super::*;

fn texts(source: &str) -> Vec<&str> {
    code(source).iter().map(|token| token.text).collect()
}

#[test]
fn comments_and_strings_are_no_code() {
    let source = r####"
        // use a;
        /* use b; /* use c; */ use d; */
        let x = "use e; \" }"; let y = r#"use f; " { "#; let z = br"\"; g
    "####;
    assert_eq!(
        texts(source),
        [
            "let",
            "x",
            "=",
            r#""use e; \" }""#,
            ";",
            "let",
            "y",
            "=",
            r##"r#"use f; " { "#"##,
            ";",
            "let",
            "z",
            "=",
            r#"br"\""#,
            ";",
            "g"
        ]
    );
}

#[test]
fn characters_are_told_from_lifetimes() {
    let source = r"fn f<'a>(x: &'a str) { '{'; '\''; b'}'; 'ä'; '\u{7d}'; 'outer: loop {} }";
    let tokens = code(source);
    let of = |kind| -> Vec<_> {
        let tokens = tokens.iter().filter(|token| token.kind == kind);
        tokens.map(|token| token.text).collect()
    };
    assert_eq!(of(Kind::Lifetime), ["'a", "'a", "'outer"]);
    assert_eq!(
        of(Kind::Literal),
        ["'{'", r"'\''", "b'}'", "'ä'", r"'\u{7d}'"]
    );
}

#[test]
fn numbers_end_before_ranges_and_methods() {
    assert_eq!(
        texts("0..8 1.5e3 2.pow"),
        ["0", ".", ".", "8", "1.5e3", "2", ".", "pow"]
    );
}

#[test]
fn raw_identifiers_are_words() {
    let tokens = code("r#type::x");
    assert_eq!(tokens[0].word(), "r#type");
    assert_eq!(tokens[1].sign(), "::");
}

#[test]
fn doc_comments_keep_their_text() {
    let tokens = tokens("//! Outer.\n/// Inner.\n//// Plain.\n// Plain.\nfn f() {}");
    let docs: Vec<_> = tokens
        .iter()
        .filter(|token| token.kind == Kind::Doc)
        .collect();
    assert_eq!(docs[0].text, " Outer.");
    assert_eq!(docs[1].text, " Inner.");
    assert_eq!((docs.len(), docs[1].line), (2, 2));
}

#[test]
fn tests_are_marked() {
    let source = "
        use a;
        #[cfg(test)]
        #[allow(dead_code)]
        mod tests { use b; fn f() { {} } }
        use c;
        #[cfg(test)]
        mod more;
        use d;
        #[cfg(all(test, unix))]
        fn g(x: [u8; 2]) {}
        #[cfg(not(test))]
        use e;";
    let tokens = code(source);
    let words = tokens
        .iter()
        .filter(|token| !token.is_test && token.word().len() == 1);
    let words: Vec<_> = words.map(|token| token.text).collect();
    assert_eq!(words, ["a", "c", "d", "e"]);
}

#[test]
fn lines_are_counted_through_strings_and_comments() {
    let source = "/*\n\n*/ \"\n\\\n\" x";
    assert_eq!(code(source).last().map(|token| token.line), Some(5));
}
