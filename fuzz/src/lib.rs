//! The promises that must hold for any bytes. The fuzz targets call these
//! functions, and so do the tests of portredir with the committed corpus.

use std::path::Path;

use portredir::config::file;
use portredir::config::settings::Settings;
use portredir::rule::{self, Rule};
use portredir::ruleset::compile::{Table, TableOptions};
use portredir::ruleset::history::History;
use portredir::ruleset::shadow;
use portredir::state::State;
use portredir::state::attachment::Attachment;

/// A text is a rule whose own text is the same rule, or an error that points
/// into it.
pub fn rule(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match text.parse::<Rule>() {
        Ok(rule) => {
            let again = rule.to_string().parse::<Rule>();
            assert_eq!(again.as_ref(), Ok(&rule), "{text:?}");
        }
        Err(error) => {
            assert!(error.at() <= text.chars().count(), "{error:?}");
            let message = error.to_string();
            assert_eq!(message.lines().count(), 4, "{message}");
        }
    }
    let words: Vec<_> = text.split('\n').map(str::to_owned).collect();
    if let Ok(rules) = rule::from_words(&words) {
        // Refused or not.
        let _ = shadow::check(&rules);
    }
}

/// A file is refused, or what is saved of it loads the same.
pub fn config(input: &[u8]) {
    let path = Path::new("rules.toml");
    let Ok(config) = file::parse(path, input.to_vec()) else {
        return;
    };
    let settings = config.over(&Settings::default());
    let saved = file::to_toml(&settings);
    let again = file::parse(path, saved.clone().into_bytes())
        .unwrap_or_else(|error| panic!("{error}\n{saved}"));
    assert_eq!(again.over(&Settings::default()), settings, "{saved}");
    let _ = shadow::check(&config.rules);
    compile(
        &(0..=u16::MAX).zip(settings.rules).collect::<Vec<_>>(),
        &History::default(),
    );
}

/// The state that another process left is refused, or this process can go on
/// with it.
pub fn state(input: &[u8]) {
    // Neither may panic; a record is of an interface.
    let _ = Attachment::parse(input);
    let Ok(state) = State::parse(input, "a directory") else {
        return;
    };
    let bytes = serde_json::to_vec(&state).expect("state is JSON");
    let again = State::parse(&bytes, "a directory").expect("the same state");
    assert_eq!(again, state);
    compile(&state.rules(), &state.history);
    let next = state.next(state.settings.clone(), state.history.clone());
    assert_eq!(next.ids, state.ids);
    let history = state
        .history
        .after(&state.settings.rules, &[], |_, _, _| true);
    compile(&[], &history);
}

/// Refused or not, nothing panics.
fn compile(rules: &[(u16, Rule)], history: &History) {
    let options = TableOptions {
        hide_target: true,
        if_listening: true,
        taken: None,
    };
    let _ = Table::compile(rules, history, options, |place| {
        u16::try_from(place % 4095 + 1).ok()
    });
}
