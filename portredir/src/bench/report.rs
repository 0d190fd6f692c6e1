//! The results, as they are written into files: [`text`] for the terminal, [`markdown`],
//! [`html`], and JSON, which is these types.

pub mod html;
pub mod markdown;
pub mod text;

use serde::{Deserialize, Serialize};

use crate::bench::environment::Environment;
use crate::bench::load::request::Source;
use crate::bench::statistics::{Cost, Noise, Ratio};
use crate::bench::traffic::Traffic;

/// The version of the JSON; grows when a reader of the old one would misunderstand the
/// new one.
pub const SCHEMA: u32 = 1;

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The version of the JSON: [`SCHEMA`].
    pub schema: u32,
    /// The version of this program.
    pub version: String,
    /// The command line as it was typed.
    pub command: String,
    /// The seed of the order of turns.
    pub seed: u64,
    /// The time when the benchmark began, RFC 3339.
    pub began: String,
    /// The duration of the benchmark.
    pub seconds: f64,
    /// The machine.
    pub environment: Environment,
    /// The variants, with those that could not be compared.
    pub variants: Vec<VariantReport>,
    /// The measurements by traffic.
    pub tests: Vec<TestReport>,
    /// The measurements without traffic.
    pub tables: Vec<Table>,
}

/// A way to be redirected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VariantReport {
    /// The name, as in the rows.
    pub name: String,
    /// The version that the redirecting program reports.
    pub version: Option<String>,
    /// The result of the checks.
    pub status: Status,
    /// The rules of the variant, without the middle of long lists.
    pub rules: String,
}

/// The result of the checks of a variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The variant works and was measured.
    Verified,
    /// The variant could not be tried, for this reason.
    Skipped(String),
    /// The variant was tried and does not work, for this reason: it was not measured.
    Failed(String),
}

/// One kind of traffic.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TestReport {
    /// The kind of traffic.
    pub traffic: Traffic,
    /// The kind of traffic in words.
    pub title: &'static str,
    /// The operation that costs are given for.
    pub operation: &'static str,
    /// The source of the packets.
    pub source: Source,
    /// The number of turns of each variant in a repetition.
    pub cycles: usize,
    /// The number of repetitions.
    pub repetitions: usize,
    /// The differences that mean nothing; `None` without two variants that are the same.
    pub noise: Option<Noise>,
    /// The variants, in the order of their list.
    pub rows: Vec<Row>,
    /// The verdicts: a line for each variant of portredir.
    pub verdicts: Vec<String>,
}

/// A variant in a test.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The name of the variant, as in [`VariantReport::name`].
    pub variant: String,
    /// Whether the variant is one of portredir.
    pub is_ours: bool,
    /// The reason why there are no figures, or not all.
    pub failure: Option<String>,
    /// The cost of an operation.
    pub cost: Option<Cost>,
    /// The cost of this variant divided by that of no redirect in the same cycle.
    pub to_direct: Option<Ratio>,
    /// The cost of iptables (or of the opponent that [`Self::reference`] names) divided
    /// by that of this variant.
    pub reference_to_this: Option<Ratio>,
    /// The variant that this one is compared with.
    pub reference: Option<String>,
}

/// A table of measurements without traffic.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// The subject of the table.
    pub title: &'static str,
    /// The method, and what a reader should keep in mind.
    pub note: String,
    /// The heads of the columns, with units.
    pub columns: Vec<&'static str>,
    /// The lines: names and their figures.
    pub lines: Vec<Line>,
}

/// A line of a [`Table`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The name of the line.
    pub name: String,
    /// The figures, one for each column; `None` where there is none.
    pub figures: Vec<Option<f64>>,
}

impl Report {
    /// The whole report as JSON, for programs.
    ///
    /// # Errors
    ///
    /// No known ones.
    pub fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl Row {
    /// A row of a variant without figures.
    #[must_use]
    pub fn failed(variant: String, reason: String) -> Self {
        Self {
            variant,
            is_ours: false,
            failure: Some(reason),
            cost: None,
            to_direct: None,
            reference_to_this: None,
            reference: None,
        }
    }
}

/// A text without its middle, if the text is long.
#[must_use]
pub fn abridge(text: &str) -> String {
    const LINES: usize = 40;
    const EDGE: usize = 4;
    const WIDTH: usize = 160;
    let lines: Vec<_> = text.lines().collect();
    let short = |line: &&str| {
        let count = line.chars().count();
        if count <= WIDTH {
            return (*line).to_owned();
        }
        let start: String = line.chars().take(WIDTH / 2).collect();
        let end: String = line.chars().skip(count - WIDTH / 4).collect();
        format!("{start} … {end}")
    };
    let all = |lines: &[&str]| lines.iter().map(short).collect::<Vec<_>>().join("\n");
    if lines.len() <= LINES {
        return all(&lines);
    }
    let left_out = lines.len() - 2 * EDGE;
    let (start, end) = (&lines[..EDGE], &lines[lines.len() - EDGE..]);
    format!("{}\n… {left_out} more …\n{}", all(start), all(end))
}

/// A figure with its significant digits.
#[must_use]
pub fn figure(value: f64) -> String {
    if value >= 100.0 {
        group(&format!("{value:.0}"))
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// 1234567 as 1 234 567.
fn group(digits: &str) -> String {
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            // A space that does not break lines.
            grouped.push('\u{a0}');
        }
        grouped.push(digit);
    }
    grouped
}

/// A ratio for people.
#[must_use]
pub fn ratio(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
pub mod sample {
    //! A report that has some of everything, for the tests of its forms.

    use super::*;
    use crate::bench::environment;

    fn row(variant: &str, ns: f64, to_direct: f64, reference: Option<f64>) -> Row {
        let ratio = |median: f64| Ratio {
            median,
            p10: median * 0.97,
            p90: median * 1.04,
            min: median * 0.99,
            max: median * 1.01,
        };
        Row {
            variant: variant.to_owned(),
            is_ours: variant.starts_with("portredir"),
            failure: None,
            cost: Some(Cost {
                best_ns: ns,
                median_ns: ns * 1.1,
            }),
            to_direct: Some(ratio(to_direct)),
            reference_to_this: reference.map(ratio),
            reference: reference.map(|_| "iptables-legacy".to_owned()),
        }
    }

    /// The report.
    pub fn report() -> Report {
        Report {
            schema: SCHEMA,
            version: "0.1.0".to_owned(),
            command: "portredir bench --quick".to_owned(),
            seed: 7,
            began: "2026-01-02T03:04:05Z".to_owned(),
            seconds: 14.2,
            environment: environment::sample(),
            variants: variants(),
            tests: vec![test()],
            tables: vec![table()],
        }
    }

    fn variants() -> Vec<VariantReport> {
        let variant = |name: &str, version: Option<&str>, status, rules: &str| VariantReport {
            name: name.to_owned(),
            version: version.map(str::to_owned),
            status,
            rules: rules.to_owned(),
        };
        vec![
            variant("direct", None, Status::Verified, ""),
            variant("direct 2", None, Status::Verified, ""),
            variant(
                "portredir auto",
                Some("0.1.0"),
                Status::Verified,
                "rules = [\n    \"80:8080/both\",\n]",
            ),
            variant(
                "iptables-legacy",
                Some("iptables v1.8.9 (legacy)"),
                Status::Verified,
                "-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080",
            ),
            variant(
                "haproxy",
                None,
                Status::Skipped("haproxy is not installed".to_owned()),
                "",
            ),
            variant(
                "socat",
                Some("socat version 1.7"),
                Status::Failed("TCP to port 80: connect".to_owned()),
                "socat <a> & <b>",
            ),
        ]
    }

    fn test() -> TestReport {
        TestReport {
            traffic: Traffic::Udp,
            title: Traffic::Udp.title(),
            operation: Traffic::Udp.operation(),
            source: Source::LiveFrames,
            cycles: 40,
            repetitions: 2,
            noise: Some(Noise { deviation: 0.012 }),
            rows: vec![
                row("direct", 379.0, 1.0, Some(1.585)),
                row("direct 2", 378.2, 0.996, Some(1.59)),
                row("portredir auto", 430.4, 1.136, Some(1.395)),
                row("iptables-legacy", 613.0, 1.585, None),
                Row::failed("nft-map".to_owned(), "connect: refused".to_owned()),
            ],
            verdicts: vec![
                "portredir auto: fewer ns per packet than iptables-legacy (1.40x); more than \
                     direct (1.14x)"
                    .to_owned(),
            ],
        }
    }

    fn table() -> Table {
        Table {
            title: "Memory",
            note: "Of programs with 10 000 rules.".to_owned(),
            columns: vec!["resident MiB", "kernel MiB"],
            lines: vec![
                Line {
                    name: "portredir".to_owned(),
                    figures: vec![Some(9.5), Some(52.25)],
                },
                Line {
                    name: "nginx".to_owned(),
                    figures: vec![Some(5.0), None],
                },
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_or_so() {
        let all = [0.123, 9.876, 54.32, 379.4, 1234.5, 1_234_567.0].map(figure);
        assert_eq!(
            all,
            [
                "0.12",
                "9.88",
                "54.3",
                "379",
                "1\u{a0}234",
                "1\u{a0}234\u{a0}567"
            ]
        );
        assert_eq!([1.0456, 14.26, 338.4].map(ratio), ["1.046", "14.3", "338"]);
    }

    #[test]
    fn long_texts_lose_their_middle() {
        let text: String = (0..10_000).map(|i| format!("rule {i}\n")).collect();
        let short = abridge(&text);
        assert_eq!(short.lines().count(), 9);
        assert!(short.starts_with("rule 0\n"), "{short}");
        assert!(short.contains("… 9992 more …"), "{short}");
        assert!(short.ends_with("rule 9999"), "{short}");
        assert!(abridge(&"9".repeat(5000)).chars().count() < 200);
        assert_eq!(abridge("one\ntwo\n"), "one\ntwo");
    }

    #[test]
    fn json() {
        insta::assert_snapshot!(sample::report().to_json().expect("JSON"));
    }
}
