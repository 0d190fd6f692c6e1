//! Paths of every form, and what they lead to.

use super::*;

const FILES: [&str; 8] = [
    "portredir-common/src/lib.rs",
    "portredir-common/src/net.rs",
    "portredir/src/lib.rs",
    "portredir/src/main.rs",
    "portredir/src/rule.rs",
    "portredir/src/rule/parse.rs",
    "portredir/src/rule/tests.rs",
    "portredir/src/plan.rs",
];

/// The targets of what a file with this source imports.
fn targets(path: &str, source: &str) -> Vec<String> {
    let modules = Modules::of(FILES);
    let file = modules
        .files()
        .find(|file| file.path == path)
        .expect("a file");
    let imports = modules.imports(file, source);
    let targets = imports.into_iter().map(|import| match import.to {
        Target::File(path) => path,
        Target::External(name) => name,
    });
    targets.collect()
}

const PARSE: &str = "portredir/src/rule/parse.rs";
const RULE: &str = "portredir/src/rule.rs";
const PLAN: &str = "portredir/src/plan.rs";

#[test]
fn nested_use_names_each_file() {
    let source = "use crate::{plan::{Plan, Engine}, rule::{self, parse::{Parser as P, *}}};";
    assert_eq!(
        targets("portredir/src/main.rs", source),
        [PLAN, PLAN, RULE, PARSE, PARSE]
    );
}

#[test]
fn super_and_self_are_relative() {
    assert_eq!(targets(PARSE, "use super::Rule;"), [RULE]);
    assert_eq!(targets(PARSE, "use super::super::plan::Plan;"), [PLAN]);
    assert_eq!(targets(RULE, "use self::parse::Parser;"), [PARSE]);
    assert_eq!(targets(RULE, "mod parse; use parse::Parser;"), [PARSE]);
    assert_eq!(targets(PARSE, "mod x { use super::super::Rule; }"), [RULE]);
    assert!(targets(PARSE, "mod x { use super::Word; }").is_empty());
}

#[test]
fn pub_use_of_a_child_is_no_import() {
    assert!(targets(RULE, "pub use self::parse::Parser;").is_empty());
    assert!(targets(RULE, "pub(crate) use self::parse::{A, B};").is_empty());
    assert_eq!(targets(RULE, "pub use crate::plan::Plan;"), [PLAN]);
}

#[test]
fn expressions_name_files() {
    let source = "fn f() -> crate::plan::Plan { parse::text::<u8>(x); Vec::new() }";
    assert_eq!(targets(RULE, source), [PLAN, PARSE]);
    assert_eq!(targets(RULE, "fn f() { tokio::spawn(x) }"), ["tokio"]);
}

#[test]
fn other_crates_are_found() {
    let common = "portredir-common/src/net.rs";
    assert_eq!(targets(RULE, "use portredir_common::net::Port;"), [common]);
    assert_eq!(targets(PLAN, "use aya::Ebpf;"), ["aya"]);
    assert_eq!(
        targets("portredir/src/main.rs", "use portredir::plan;"),
        [PLAN]
    );
}

#[test]
fn tests_comments_and_strings_import_nothing() {
    let source = "
        // use crate::plan;
        const TEXT: &str = \"use crate::plan;\";
        #[cfg(test)]
        mod tests { use crate::plan::Plan; }
        fn f() -> impl Sized + use<'static> {}";
    assert!(targets(RULE, source).is_empty());
}

#[test]
fn an_import_knows_its_line() {
    let modules = Modules::of(FILES);
    let file = modules
        .files()
        .find(|file| file.path == RULE)
        .expect("a file");
    let imports = modules.imports(file, "\n\nuse crate::{\n    plan,\n};\n");
    assert_eq!(imports[0].line, 4);
    assert_eq!(imports[0].text, "crate::plan");
}
