//! The sizes and habits of the workspace against what is allowed.

use std::collections::BTreeMap;

use super::allowed::Allowed;
use super::habits::{self, Found, HABITS, Habit};
use super::sizes::{self, FILE, FUNCTION, Sized};
use super::workspace::Source;

/// Everything that is beyond a limit, and everything that is allowed although it
/// no longer occurs, as messages.
pub fn check(sources: &[Source], allowed: &Allowed) -> Vec<String> {
    let mut wrong = long_files(&sizes::files(sources), allowed);
    wrong.extend(long_functions(&sizes::all_functions(sources), allowed));
    wrong.extend(habits(&habits::find(sources), allowed));
    wrong
}

fn long_files(files: &[Sized], allowed: &Allowed) -> Vec<String> {
    let long = files.iter().filter(|file| file.lines > FILE);
    let is_allowed = |path: &str| allowed.files.iter().any(|(file, _)| *file == path);
    let new = long.clone().filter(|file| !is_allowed(&file.name));
    let new = new.map(|file| {
        format!(
            "{} has {} lines, more than {FILE}: split it by its nouns\n    ({:?}, \"why\"),",
            file.name, file.lines, file.name
        )
    });
    let is_long = |path: &str| long.clone().any(|file| file.name == path);
    let stale = allowed.files.iter().filter(|(path, _)| !is_long(path));
    let stale = stale.map(|(path, _)| {
        format!("{path} is no longer too long: delete its line in LONG_FILES, {ALLOWED}")
    });
    new.chain(stale).collect()
}

fn long_functions(functions: &[Sized], allowed: &Allowed) -> Vec<String> {
    // Functions of one name count together, wherever they stand: a list by files
    // would not survive a move.
    let mut long: BTreeMap<(&str, &str), Vec<&Sized>> = BTreeMap::new();
    for function in functions
        .iter()
        .filter(|function| function.lines > FUNCTION)
    {
        long.entry((function.group, &function.name))
            .or_default()
            .push(function);
    }
    let mut expected: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (group, name, _) in allowed.functions {
        *expected.entry((group, name)).or_default() += 1;
    }
    let mut wrong = Vec::new();
    for (key, functions) in &long {
        if functions.len() > expected.get(key).copied().unwrap_or(0) {
            wrong.extend(functions.iter().map(|function| {
                format!(
                    "{}: {} has {} lines, more than {FUNCTION}: give its parts names\n    \
                     ({:?}, {:?}, \"why\"),",
                    function.place, function.name, function.lines, key.0, key.1
                )
            }));
        }
    }
    for ((group, name), count) in expected {
        let found = long.get(&(group, name)).map_or(0, Vec::len);
        if found < count {
            wrong.push(format!(
                "{group}: {found} functions named {name} are too long, not {count}: delete \
                 {} of the lines ({group:?}, {name:?}, …) in LONG_FUNCTIONS, {ALLOWED}",
                count - found
            ));
        }
    }
    wrong
}

fn habits(found: &[Found], allowed: &Allowed) -> Vec<String> {
    let mut counts: BTreeMap<(Habit, &str), (usize, usize)> = BTreeMap::new();
    for found in found {
        counts.entry((found.habit, found.group)).or_default().0 += 1;
    }
    for (habit, group, count) in allowed.habits {
        counts.entry((*habit, group)).or_default().1 += count;
    }
    let mut wrong = Vec::new();
    for ((habit, group), (count, allowed)) in counts {
        if count < allowed {
            wrong.push(format!(
                "{group}: {habit:?} occurs {count} times, not {allowed}: write \
                 (Habit::{habit:?}, {group:?}, {count}) in HABITS, {ALLOWED}, or delete the line at 0"
            ));
        } else if count > allowed {
            let of_these = |found: &&Found| (found.habit, found.group) == (habit, group);
            let places: String = found.iter().filter(of_these).map(place).collect();
            wrong.push(format!(
                "{group}: {habit:?} occurs {count} times, {allowed} are allowed; {}\n{places}    \
                 (Habit::{habit:?}, {group:?}, {count}),",
                habit.advice()
            ));
        }
    }
    wrong
}

/// All occurrences of the habits, with their number for each crate.
pub fn report(sources: &[Source]) -> String {
    let found = habits::find(sources);
    let mut text = String::new();
    for habit in HABITS {
        let found = found.iter().filter(|found| found.habit == habit);
        text += &format!("{habit:?}: {}; {}\n", found.clone().count(), habit.advice());
        text += &found.map(place).collect::<String>();
    }
    text
}

/// The number of occurrences of each habit in each crate, as one line for each
/// habit.
pub fn counts(sources: &[Source]) -> String {
    let found = habits::find(sources);
    let mut text = String::new();
    for habit in HABITS {
        let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
        for found in found.iter().filter(|found| found.habit == habit) {
            *groups.entry(found.group).or_default() += 1;
        }
        let groups: Vec<_> = groups
            .iter()
            .map(|(group, count)| format!("{group} {count}"))
            .collect();
        let groups = if groups.is_empty() {
            "none".to_owned()
        } else {
            groups.join(", ")
        };
        text += &format!("{:<16}{groups}\n", format!("{habit:?}"));
    }
    text
}

fn place(found: &Found) -> String {
    format!("    {}:{}: {}\n", found.path, found.line, found.what)
}

const ALLOWED: &str = "xtask/src/lint/allowed.rs";

#[cfg(test)]
mod tests {
    use super::super::allowed::ALLOWED;
    use super::super::workspace;
    use super::*;

    fn source(path: &str, text: String) -> Source {
        Source {
            path: path.to_owned(),
            text,
        }
    }

    fn long_function(lines: usize) -> String {
        format!("fn long() {{{}}}\n", "\n".repeat(lines - 1))
    }

    const NOTHING: Allowed = Allowed {
        files: &[],
        functions: &[],
        habits: &[],
    };

    #[test]
    fn workspace_keeps_its_limits() {
        let sources = workspace::sources(&crate::root::root()).expect("readable sources");
        let wrong = check(&sources, &ALLOWED);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn long_files_and_functions_are_found() {
        let at_limit = [
            source("portredir/src/a.rs", "\n".repeat(FILE)),
            source("portredir/src/b.rs", long_function(FUNCTION)),
        ];
        assert_eq!(check(&at_limit, &NOTHING), [""; 0]);
        let beyond = [
            source("portredir/src/a.rs", "\n".repeat(FILE + 1)),
            source("portredir/src/b.rs", long_function(FUNCTION + 1)),
        ];
        let wrong = check(&beyond, &NOTHING);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].starts_with("portredir/src/a.rs has 501 lines"));
        assert!(wrong[1].starts_with("portredir/src/b.rs:1: long has 61 lines"));
    }

    #[test]
    fn what_is_allowed_must_occur() {
        let allowed = Allowed {
            files: &[("portredir/src/a.rs", "a test")],
            functions: &[
                ("portredir", "long", "a test"),
                ("portredir", "long", "a test"),
            ],
            habits: &[(Habit::DocWord, "portredir", 2)],
        };
        let exact = [
            source("portredir/src/a.rs", "\n".repeat(FILE + 1)),
            source("portredir/src/b.rs", long_function(FUNCTION + 1).repeat(2)),
            source(
                "portredir/src/c.rs",
                "/// It.\nfn a() {}\n/// Of.\nfn b() {}\n".into(),
            ),
        ];
        assert_eq!(check(&exact, &allowed), [""; 0]);
        let better = [source("portredir/src/b.rs", long_function(FUNCTION + 1))];
        let wrong = check(&better, &allowed);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong[1].contains("delete 1 of the lines"), "{wrong:?}");
        assert!(wrong[2].contains("occurs 0 times, not 2"), "{wrong:?}");
    }

    #[test]
    fn more_of_a_habit_is_wrong() {
        let allowed = Allowed {
            habits: &[(Habit::DocWord, "portredir", 1)],
            ..NOTHING
        };
        let sources = [source(
            "portredir/src/c.rs",
            "/// It.\nfn a() {}\n/// Of.\nfn b() {}\n".into(),
        )];
        let wrong = check(&sources, &allowed);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].contains("portredir/src/c.rs:3: Of."), "{wrong:?}");
        let report = report(&sources);
        assert!(report.starts_with("DocWord: 2; a doc comment"), "{report}");
    }
}
