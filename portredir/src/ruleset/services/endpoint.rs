//! The place that a target leads to, and the words by which people name places.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use portredir_common::net::Port;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The place that a target leads to. Two targets of a rule have two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "Form", from = "Form")]
pub struct Endpoint {
    /// The address; `None` is a port of this host, on the address that the client dialled.
    pub host: Option<IpAddr>,
    /// The port, or the first one of a range.
    pub port: Port,
    /// The rest of a range, in which each destination port has a target port of its own.
    pub range: Option<Range>,
}

/// The rest of a range of target ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// The destination port that leads to the first target port.
    pub first_dst_port: Port,
    /// The last target port.
    pub last_port: Port,
}

/// An endpoint in JSON, where ports are numbers.
#[derive(Serialize, Deserialize)]
struct Form {
    host: Option<IpAddr>,
    port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_dst_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_port: Option<u16>,
}

impl From<Endpoint> for Form {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            host: endpoint.host,
            port: endpoint.port.get(),
            first_dst_port: endpoint.range.map(|range| range.first_dst_port.get()),
            last_port: endpoint.range.map(|range| range.last_port.get()),
        }
    }
}

impl From<Form> for Endpoint {
    fn from(form: Form) -> Self {
        let ends = form.first_dst_port.zip(form.last_port);
        Self {
            host: form.host,
            port: Port::new(form.port),
            range: ends.map(|(first_dst_port, last_port)| Range {
                first_dst_port: Port::new(first_dst_port),
                last_port: Port::new(last_port),
            }),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.get();
        match self.host {
            Some(host) => write!(f, "{}", SocketAddr::new(host, port))?,
            None => write!(f, "{port}")?,
        }
        match self.range {
            Some(range) => write!(f, "-{}", range.last_port.get()),
            None => Ok(()),
        }
    }
}

/// The targets that a command names: `10.0.0.5`, `10.0.0.5:8080`, `[2001:db8::5]:8080`, or
/// `8080` for a port of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The address; `None` is this host.
    pub host: Option<IpAddr>,
    /// The port; `None` is each one.
    pub port: Option<Port>,
}

/// The text does not name targets.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no target; write its address as in 10.0.0.5, address and port as in \
     10.0.0.5:8080 or [2001:db8::5]:8080, or a port of this host as in 8080"
)]
pub struct SelectorError(pub String);

impl Selector {
    /// Whether an endpoint is meant.
    #[must_use]
    pub fn matches(&self, endpoint: &Endpoint) -> bool {
        let first = endpoint.port.get();
        let last = endpoint.range.map_or(first, |range| range.last_port.get());
        let is_port = self
            .port
            .is_none_or(|port| (first..=last).contains(&port.get()));
        self.host == endpoint.host && is_port
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let error = || SelectorError(text.to_owned());
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(host) = bare.parse() {
            let host = Some(host);
            return Ok(Self { host, port: None });
        }
        let (host, port) = match text.parse::<SocketAddr>() {
            Ok(addr) => (Some(addr.ip()), addr.port()),
            Err(_) => (None, text.parse().map_err(|_| error())?),
        };
        if port == 0 {
            return Err(error());
        }
        let port = Some(Port::new(port));
        Ok(Self { host, port })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host, self.port) {
            (Some(host), Some(port)) => write!(f, "{}", SocketAddr::new(host, port.get())),
            (Some(host), None) => write!(f, "{host}"),
            (None, Some(port)) => write!(f, "{}", port.get()),
            (None, None) => f.write_str("each port of this host"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: Option<&str>, port: u16, range: Option<(u16, u16)>) -> Endpoint {
        Endpoint {
            host: host.map(|host| host.parse().expect("an address")),
            port: Port::new(port),
            range: range.map(|(first_dst_port, last_port)| Range {
                first_dst_port: Port::new(first_dst_port),
                last_port: Port::new(last_port),
            }),
        }
    }

    #[test]
    fn endpoints_in_text_and_json() {
        let cases = [
            (
                endpoint(None, 8080, None),
                "8080",
                r#"{"host":null,"port":8080}"#,
            ),
            (
                endpoint(Some("10.0.0.5"), 9000, Some((8000, 9100))),
                "10.0.0.5:9000-9100",
                r#"{"host":"10.0.0.5","port":9000,"first_dst_port":8000,"last_port":9100}"#,
            ),
            (
                endpoint(Some("2001:db8::5"), 80, None),
                "[2001:db8::5]:80",
                r#"{"host":"2001:db8::5","port":80}"#,
            ),
        ];
        for (endpoint, text, json) in cases {
            assert_eq!(endpoint.to_string(), text);
            assert_eq!(serde_json::to_string(&endpoint).expect("JSON"), json);
            assert_eq!(
                serde_json::from_str::<Endpoint>(json).expect(json),
                endpoint
            );
        }
    }

    #[test]
    fn selectors_name_targets() {
        let own = endpoint(None, 8080, None);
        let other = endpoint(Some("10.0.0.5"), 8080, None);
        let range = endpoint(Some("10.0.0.5"), 9000, Some((8000, 9100)));
        let v6 = endpoint(Some("2001:db8::5"), 80, None);
        let cases = [
            ("8080", [true, false, false, false]),
            ("10.0.0.5", [false, true, true, false]),
            ("10.0.0.5:8080", [false, true, false, false]),
            ("10.0.0.5:9050", [false, false, true, false]),
            ("2001:db8::5", [false, false, false, true]),
            ("[2001:db8::5]", [false, false, false, true]),
            ("[2001:db8::5]:80", [false, false, false, true]),
            ("[2001:db8::5]:81", [false; 4]),
        ];
        for (text, expected) in cases {
            let selector: Selector = text.parse().expect(text);
            let found = [own, other, range, v6].map(|endpoint| selector.matches(&endpoint));
            assert_eq!(found, expected, "{text}");
            assert_eq!(selector.to_string().parse(), Ok(selector), "{text}");
        }
        for text in [
            "",
            "0",
            "web",
            "10.0.0.5:",
            "10.0.0.5:0",
            "[2001:db8::5]:0",
            "65536",
        ] {
            let error = text.parse::<Selector>().expect_err(text);
            assert!(error.to_string().contains("10.0.0.5:8080"), "{error}");
        }
    }
}
