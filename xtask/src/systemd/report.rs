//! The outcomes that the program in the guest prints.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read};

use anyhow::{Context as _, Result};

/// The outcome of a check.
struct Row {
    is_ok: bool,
    name: String,
    seen: String,
}

/// All outcomes of a run.
#[derive(Default)]
pub struct Report {
    system: String,
    rows: Vec<Row>,
    has_end: bool,
}

impl Report {
    /// Reads and prints all lines of a program.
    pub fn follow(&mut self, output: impl Read) -> Result<()> {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("read the output of the checks")?;
            let line = String::from_utf8_lossy(&line);
            println!("{}", line.trim_end());
            self.read(line.trim_end());
        }
        Ok(())
    }

    /// Reads a line: a word, a name and what was seen, with tabs between, or the word of the
    /// end. Other lines are for the reader of the output.
    fn read(&mut self, line: &str) {
        if line == "end" {
            self.has_end = true;
            return;
        }
        let mut parts = line.splitn(3, '\t');
        let [Some(word), Some(name), seen] = [parts.next(), parts.next(), parts.next()] else {
            return;
        };
        let seen = seen.unwrap_or_default();
        match word {
            "ok" | "FAILED" => self.rows.push(Row {
                is_ok: word == "ok",
                name: name.to_owned(),
                seen: seen.to_owned(),
            }),
            "system" => self.system = format!("{name}, {seen}"),
            _ => {}
        }
    }

    /// Whether the last check has come.
    pub const fn is_complete(&self) -> bool {
        self.has_end
    }

    /// Whether all checks came and passed.
    pub fn is_good(&self) -> bool {
        self.has_end && !self.rows.is_empty() && self.rows.iter().all(|row| row.is_ok)
    }

    /// The table for a document.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "{}.\n\n| check | outcome | seen |\n|---|---|---|\n",
            self.system
        );
        for row in &self.rows {
            let outcome = if row.is_ok { "ok" } else { "**failed**" };
            let seen = row.seen.replace('|', "\\|");
            text += &format!("| {} | {outcome} | {seen} |\n", row.name);
        }
        if !self.has_end {
            text += "\nThe run ended before its last check.\n";
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.system)?;
        for row in &self.rows {
            let outcome = if row.is_ok { "ok" } else { "FAILED" };
            writeln!(f, "{outcome:<6}  {}\n        {}", row.name, row.seen)?;
        }
        let failed = self.rows.iter().filter(|row| !row.is_ok).count();
        let passed = self.rows.len() - failed;
        write!(f, "{passed} passed, {failed} failed")?;
        if self.has_end {
            Ok(())
        } else {
            write!(f, "; the run ended before its last check")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &str) -> Report {
        let mut report = Report::default();
        report.follow(lines.as_bytes()).expect("lines");
        report
    }

    #[test]
    fn a_run_is_good_when_its_last_check_came_and_all_passed() {
        let lines = "system\tDebian 12\tsystemd 252, Linux 6.1.0\nnoise\nok\tstop\t0.4 s\n";
        assert!(!report(lines).is_good());
        assert!(report(&format!("{lines}end\n")).is_good());
        let failed = format!("{lines}FAILED\tpurge\ta | b\nend\r\n");
        assert!(!report(&failed).is_good());
        let text = report(&failed).markdown();
        assert!(
            text.starts_with("Debian 12, systemd 252, Linux 6.1.0.\n"),
            "{text}"
        );
        assert!(text.contains("| purge | **failed** | a \\| b |"), "{text}");
    }

    #[test]
    fn a_run_without_a_check_is_not_good() {
        assert!(!report("end\n").is_good());
    }
}
