//! Rules of files as tables: `[[rule]]`. A table becomes the text of a rule, which is then read
//! as on the command line.

use serde::Deserialize;

/// A `[[rule]]` table.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RuleTable {
    listen: Word,
    protocol: Option<String>,
    #[serde(default)]
    from: Words,
    #[serde(default)]
    on: Words,
    targets: Vec<Target>,
    check: Option<Check>,
    affinity: Option<String>,
    snat: Option<String>,
    #[serde(rename = "else")]
    otherwise: Option<Word>,
    #[serde(default)]
    cut: bool,
    name: Option<String>,
    comment: Option<String>,
}

/// A text, or a number that stands for its text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a text in quotes, or a whole number")]
enum Word {
    Text(String),
    Number(i64),
}

/// One text or several.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a text in quotes, or a list of them")]
enum Words {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a target such as \"10.0.0.5:8080\", or a table { to = \"10.0.0.5:8080\", \
                 weight = 2 }"
)]
enum Target {
    Plain(Word),
    Weighted(Weighted),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weighted {
    to: Word,
    weight: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a check such as \"tcp\", \"none\" or { http = \"/healthz\", every = \"2s\" }, \
                 with the keys tcp or udp (a port), http, every, timeout, rise and fall"
)]
enum Check {
    Plain(String),
    Timed(Timed),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Timed {
    tcp: Option<CheckPort>,
    udp: Option<CheckPort>,
    http: Option<String>,
    every: Option<Time>,
    timeout: Option<Time>,
    rise: Option<i64>,
    fall: Option<i64>,
}

/// The port of a check by TCP or UDP; `true` for that of the target.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a port, or true for that of the target"
)]
enum CheckPort {
    OfTarget(bool),
    Port(Word),
}

/// A duration as a text, or as a number of seconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a duration, for example 2 or \"500ms\""
)]
enum Time {
    Text(String),
    Whole(i64),
    Seconds(f64),
}

impl Default for Words {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Words {
    fn all(&self) -> &[String] {
        match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::Many(words) => words,
        }
    }
}

/// A mistake in a table that its text as a rule would not show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A value would become several words of a rule, or none.
    #[error("`{key} = \"{value}\"` is not one word; write for example {example}")]
    Word {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// A valid line.
        example: &'static str,
    },
    /// A rule without targets.
    #[error("`targets` is empty; write for example targets = [\"10.0.0.5:8080\"]")]
    NoTargets,
    /// A check of two kinds.
    #[error(
        "a check has one of `tcp`, `udp` and `http`; write for example check = \
         {{ http = \"/healthz\" }}"
    )]
    TwoChecks,
}

impl RuleTable {
    /// The text of each rule: one for each client network.
    pub(super) fn texts(&self) -> Result<Vec<String>, TableError> {
        let listen = word("listen", &self.listen.text(), "listen = \"443\"")?;
        if self.targets.is_empty() {
            return Err(TableError::NoTargets);
        }
        let targets = self.targets.iter().map(Target::text);
        let targets = targets.collect::<Result<Vec<_>, _>>()?.join(",");
        let mut head = format!("{listen}:{targets}");
        if let Some(protocol) = &self.protocol {
            head += &format!("/{}", word("protocol", protocol, "protocol = \"udp\"")?);
        }
        let tail = self.tail()?;
        let networks = self.from.all();
        if networks.is_empty() {
            return Ok(vec![head + &tail]);
        }
        let rule = |network: &String| {
            let network = word("from", network, "from = [\"10.0.0.0/8\"]")?;
            Ok(format!("{head} from {network}{tail}"))
        };
        networks.iter().map(rule).collect()
    }

    /// The interfaces and options.
    fn tail(&self) -> Result<String, TableError> {
        let mut tail = String::new();
        let on = self.on.all();
        for name in on {
            word("on", name, "on = [\"eth0\"]")?;
        }
        if !on.is_empty() {
            tail += &format!(" on {}", on.join(","));
        }
        if let Some(check) = &self.check {
            tail += &check.text()?;
        }
        if let Some(affinity) = &self.affinity {
            tail += &format!(
                " affinity {}",
                word("affinity", affinity, "affinity = \"client\"")?
            );
        }
        if let Some(snat) = &self.snat {
            tail += &format!(" snat {}", word("snat", snat, "snat = \"never\"")?);
        }
        if let Some(otherwise) = &self.otherwise {
            let otherwise = otherwise.text();
            tail += &format!(
                " else {}",
                word("else", &otherwise, "else = \"10.0.0.9:8080\"")?
            );
        }
        if self.cut {
            tail += " cut";
        }
        if let Some(name) = &self.name {
            tail += &format!(" name {}", word("name", name, "name = \"web\"")?);
        }
        // A comment takes the rest of the text.
        if let Some(comment) = &self.comment {
            tail += &format!(" # {comment}");
        }
        Ok(tail)
    }
}

impl Word {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

impl Target {
    fn text(&self) -> Result<String, TableError> {
        const EXAMPLE: &str = "targets = [\"10.0.0.5:8080\"]";
        match self {
            Self::Plain(target) => word("targets", &target.text(), EXAMPLE),
            Self::Weighted(Weighted { to, weight }) => {
                let to = word("to", &to.text(), "{ to = \"10.0.0.5:8080\", weight = 2 }")?;
                Ok(weight.map_or_else(|| to.clone(), |weight| format!("{to}={weight}")))
            }
        }
    }
}

impl Check {
    fn text(&self) -> Result<String, TableError> {
        let timed = match self {
            Self::Plain(by) => {
                return Ok(format!(" check {}", word("check", by, "check = \"tcp\"")?));
            }
            Self::Timed(timed) => timed,
        };
        let mut text = match (&timed.tcp, &timed.udp, &timed.http) {
            (Some(port), None, None) => port.text("tcp", "check = { tcp = 8080 }")?,
            (None, Some(port), None) => port.text("udp", "check = { udp = 53 }")?,
            (None, None, Some(path)) => {
                let path = word("http", path, "check = { http = \"/healthz\" }")?;
                format!(" check http:{path}")
            }
            (None, None, None) => String::new(),
            _ => return Err(TableError::TwoChecks),
        };
        for (key, time) in [("every", &timed.every), ("timeout", &timed.timeout)] {
            if let Some(time) = time {
                let time = word(key, &time.text(), "check = { every = \"2s\" }")?;
                text += &format!(" {key} {time}");
            }
        }
        for (key, count) in [("rise", timed.rise), ("fall", timed.fall)] {
            if let Some(count) = count {
                text += &format!(" {key} {count}");
            }
        }
        Ok(text)
    }
}

impl CheckPort {
    /// The check of a rule by this protocol.
    fn text(&self, by: &'static str, example: &'static str) -> Result<String, TableError> {
        Ok(match self {
            Self::OfTarget(true) => format!(" check {by}"),
            Self::OfTarget(false) => " check none".to_owned(),
            Self::Port(port) => format!(" check {by}:{}", word(by, &port.text(), example)?),
        })
    }
}

impl Time {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Whole(seconds) => seconds.to_string(),
            Self::Seconds(seconds) => seconds.to_string(),
        }
    }
}

/// Refuses a value that would not be one word of a rule.
fn word(key: &'static str, value: &str, example: &'static str) -> Result<String, TableError> {
    if value.is_empty() || value.contains(char::is_whitespace) {
        let value = value.to_owned();
        return Err(TableError::Word {
            key,
            value,
            example,
        });
    }
    Ok(value.to_owned())
}
