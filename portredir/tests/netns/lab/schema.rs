//! Comparison of JSON with the documented schemas. In a test a key that no schema names is
//! an error, although programs have to ignore it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::skip;

const SCHEMAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema");

const CHECK: &str = r#"
import datetime, json, sys
from jsonschema import Draft202012Validator as Validator, FormatChecker
schema = json.load(open(sys.argv[1]))
Validator.check_schema(schema)
def strict(part):
    if isinstance(part, dict):
        if "properties" in part and "type" in part:
            part.setdefault("additionalProperties", False)
        for value in part.values():
            strict(value)
    elif isinstance(part, list):
        for value in part:
            strict(value)
strict(schema)
checker = FormatChecker(formats=[])
@checker.checks("date-time", raises=ValueError)
def is_time(text):
    if isinstance(text, str):
        datetime.datetime.fromisoformat(text[:19] + "+00:00")
        assert text.endswith("Z")
    return True
validator = Validator(schema, format_checker=checker)
lines = sys.stdin.read().splitlines()
assert lines, "nothing was printed"
for line in lines:
    for error in validator.iter_errors(json.loads(line)):
        while error.context:
            error = max(error.context, key=lambda inner: len(inner.absolute_path))
        print("/".join(map(str, error.absolute_path)), error.message)
"#;

/// Checks each line of `json` against `docs/schema/NAME.json`. Skips the test where the
/// validator is missing.
pub fn check(name: &str, json: &str) {
    let errors = errors(name, json);
    assert!(errors.is_empty(), "{name}: {errors}\n{json}");
}

/// The errors, one on each line.
pub fn errors(name: &str, json: &str) -> String {
    let python = |args: &[&str]| {
        let mut python = Command::new("python3");
        python.args(args).stdin(Stdio::piped());
        python.stdout(Stdio::piped()).stderr(Stdio::piped());
        python.spawn().expect("python3")
    };
    let import = python(&["-c", "import jsonschema"]).wait_with_output();
    if !import.is_ok_and(|output| output.status.success()) {
        skip("needs python3-jsonschema");
    }
    let mut python = python(&["-c", CHECK, &format!("{SCHEMAS}/{name}.json")]);
    let mut stdin = python.stdin.take().expect("a pipe");
    stdin.write_all(json.as_bytes()).expect("write");
    drop(stdin);
    let output = python.wait_with_output().expect("python3");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
