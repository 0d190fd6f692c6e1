//! Documents that a test writes, and compares with what is committed.

/// Set, it makes the test write the document instead of comparing it.
const BLESS: &str = "PORTREDIR_BLESS";

/// One of them.
pub struct Document {
    /// The name of the document in messages.
    pub name: &'static str,
    pub file: &'static str,
    /// The prefix of the names of the tests that write the document.
    pub tests: &'static str,
}

/// Whether documents are to be written.
pub fn is_regenerating() -> bool {
    std::env::var_os(BLESS).is_some_and(|value| value == "1")
}

impl Document {
    /// Compares the whole document, or writes it.
    pub fn check(&self, now: &str) {
        if is_regenerating() {
            std::fs::write(self.file, now).expect("write the document");
        } else {
            self.compare(&self.committed(), now);
        }
    }

    /// Compares the document up to a heading, behind which other tests write, or writes it
    /// up to there.
    pub fn check_start(&self, heading: &str, now: &str) {
        let committed = self.committed();
        let rest = committed.find(heading).unwrap_or(committed.len());
        self.check(&format!("{now}{}", &committed[rest..]));
    }

    /// Compares what is behind a heading, up to the end, or writes it.
    pub fn check_end(&self, heading: &str, now: &str) {
        let committed = self.committed();
        let start = committed.split(heading).next().unwrap_or_default();
        self.check(&format!("{start}{heading}{now}"));
    }

    /// The text that is committed.
    pub fn committed(&self) -> String {
        std::fs::read_to_string(self.file).unwrap_or_default()
    }

    /// Shows where two texts differ, and fails.
    pub fn compare(&self, committed: &str, now: &str) {
        if committed == now {
            return;
        }
        let diff = similar::TextDiff::from_lines(committed, now);
        let diff = diff.unified_diff().context_radius(0).to_string();
        let Self { name, tests, .. } = self;
        panic!(
            "{name} is not what was seen now:\n{diff}\
             When that is meant, renew it: {BLESS}=1 cargo test -p portredir --test netns -- {tests}"
        );
    }
}

/// Breaks the line of a list.
pub fn wrap(line: &str) -> String {
    let mut text = String::new();
    let mut columns = 0;
    for word in line.split(' ') {
        let len = word.chars().count();
        if columns + 1 + len > 120 {
            text += "\n ";
            columns = 1;
        }
        if columns > 0 {
            text.push(' ');
            columns += 1;
        }
        text += word;
        columns += len;
    }
    text + "\n"
}
