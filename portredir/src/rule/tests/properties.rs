//! The properties of every text and every rule.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestCaseResult;

use super::arbitrary::any_rule;
use crate::rule::{Rule, from_words};

/// The pieces of texts, right and wrong.
const PIECES: [&str; 60] = [
    ":",
    "::",
    "-",
    "/",
    ",",
    " ",
    "\t",
    "\n",
    "=",
    "%",
    "*",
    "!",
    "[",
    "]",
    "0",
    "00",
    "1",
    "80",
    "8080",
    "65535",
    "65536",
    "+80",
    "0x50",
    "é",
    "８",
    "–",
    "\u{0}",
    "\u{202e}",
    "tcp",
    "udp",
    "both",
    "sctp",
    "from",
    " from ",
    "on",
    " on ",
    "10.0.0.0/8",
    "2001:db8::1",
    "::ffff:1.2.3.4",
    "eth0",
    "port=",
    "toport=",
    "proto=",
    "toaddr=",
    "10.0.0.5",
    "[2001:db8::5]",
    "{",
    "=2",
    " check ",
    "tcp:80",
    "http:/",
    " every 5s",
    " else ",
    " affinity client",
    " snat never",
    " cut",
    " name ",
    "web",
    " # ",
    "#",
];

/// A change to a text.
#[derive(Clone, Debug)]
enum Change {
    Insert(&'static str),
    /// Removes this number of characters.
    Remove(usize),
    /// Repeats this number of characters.
    Repeat(usize),
    Uppercase,
}

fn change() -> impl Strategy<Value = (Index, Change)> {
    let change = prop_oneof![
        4 => select(PIECES.to_vec()).prop_map(Change::Insert),
        3 => (1_usize..4).prop_map(Change::Remove),
        1 => (1_usize..12).prop_map(Change::Repeat),
        1 => Just(Change::Uppercase),
    ];
    (any::<Index>(), change)
}

fn apply(text: &str, changes: &[(Index, Change)]) -> String {
    let mut text: Vec<_> = text.chars().collect();
    for (index, change) in changes {
        let at = index.index(text.len() + 1);
        match change {
            Change::Insert(piece) => {
                text.splice(at..at, piece.chars());
            }
            Change::Remove(count) => {
                text.drain(at..text.len().min(at + count));
            }
            Change::Repeat(count) => {
                let part = text[at..text.len().min(at + count)].to_vec();
                text.splice(at..at, part);
            }
            Change::Uppercase => {
                text.iter_mut()
                    .skip(at)
                    .for_each(|c| c.make_ascii_uppercase());
            }
        }
    }
    text.into_iter().collect()
}

/// A spelling of a rule that people or programs use.
fn spelling(rule: &Rule, is_firewalld: bool) -> String {
    if !is_firewalld || rule.addr.is_some() {
        return rule.to_string();
    }
    let text = Rule {
        from: None,
        on: Vec::new(),
        ..rule.clone()
    };
    let conditions = rule.to_string().split_off(text.to_string().len());
    let ports = rule.ports;
    let (target, host) = match rule.forward() {
        None => (rule.here().expect("one target"), None),
        // firewalld has one target, without options.
        Some(forward) => match (&forward.targets[..], text.to_string().contains(' ')) {
            ([one], false) if one.weight == 1 => (one.ports, one.host),
            _ => return rule.to_string(),
        },
    };
    let host = host.map_or(String::new(), |host| format!(":toaddr={host}"));
    let protocol = match rule.protocols {
        crate::rule::Protocols::Tcp => "tcp",
        crate::rule::Protocols::Udp => "udp",
        crate::rule::Protocols::Both => "both",
    };
    format!("port={ports}:proto={protocol}:toport={target}{host}{conditions}")
}

/// The properties of any text.
fn holds(text: &str) -> TestCaseResult {
    match text.parse::<Rule>() {
        Ok(rule) => {
            let printed = rule.to_string();
            let again = printed.parse::<Rule>();
            prop_assert_eq!(again.as_ref(), Ok(&rule), "{} as {}", text, printed);
            prop_assert_eq!(again.map(|rule| rule.to_string()), Ok(printed));
        }
        Err(error) => {
            prop_assert!(error.at() <= text.chars().count(), "{:?}", error);
            let message = error.to_string();
            let lines: Vec<_> = message.lines().collect();
            prop_assert_eq!(lines.len(), 4, "{}", message);
            let caret = lines[2].chars().count();
            prop_assert_eq!(caret, 4 + error.at() + 1, "{}", message);
            let shown = lines[1].chars().count();
            prop_assert_eq!(shown, 4 + text.chars().count(), "{}", message);
            super::messages::hint_is_right(&error).map_err(TestCaseError::fail)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2048) })]

    #[test]
    fn a_rule_is_what_its_text_says(rule in any_rule(), is_firewalld: bool) {
        let text = spelling(&rule, is_firewalld);
        prop_assert_eq!(text.parse::<Rule>(), Ok(rule.clone()), "{}", text);
        holds(&rule.to_string())?;
    }

    #[test]
    fn a_text_that_is_nearly_right(
        rule in any_rule(),
        is_firewalld: bool,
        changes in vec(change(), 1..4),
    ) {
        holds(&apply(&spelling(&rule, is_firewalld), &changes))?;
    }

    #[test]
    fn a_text_of_pieces(pieces in vec(select(PIECES.to_vec()), 0..12)) {
        holds(&pieces.concat())?;
    }

    #[test]
    fn any_text(text in any::<String>()) {
        holds(&text)?;
    }

    /// A shell may split the text anywhere.
    #[test]
    fn words_can_be_split_at_any_space(
        rules in vec(any_rule(), 0..4),
        breaks in vec(any::<bool>(), 40),
    ) {
        let mut breaks = breaks.into_iter().cycle();
        let mut words = Vec::new();
        for rule in &rules {
            words.push(String::new());
            for (i, part) in rule.to_string().split(' ').enumerate() {
                let word = words.last_mut().expect("one");
                if i == 0 {
                    word.push_str(part);
                } else if breaks.next() == Some(true) {
                    words.push(part.to_owned());
                } else {
                    *word += " ";
                    word.push_str(part);
                }
            }
        }
        let read = from_words(&words).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let read: Vec<_> = read.into_iter().map(|sourced| sourced.rule).collect();
        prop_assert_eq!(read, rules, "{:?}", words);
    }

    #[test]
    fn any_words(words in vec(select(PIECES.to_vec()), 0..12)) {
        let words: Vec<_> = words.into_iter().map(str::to_owned).collect();
        if let Err(error) = from_words(&words) {
            prop_assert!(error.to_string().starts_with("argument "));
        }
    }
}
