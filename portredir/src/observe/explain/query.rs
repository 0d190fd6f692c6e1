//! The flow that a person asks about: in words, or as tcpdump prints its first packet.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use portredir_common::net::{Port, Protocol};
use thiserror::Error;

use crate::observe::listening::name_of;

/// The way to ask.
const EXAMPLE: &str = "tcp 203.0.113.9 to 10.0.0.5:80 on eth0";

/// The reason why a question is not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// The first word is no protocol.
    #[error("expected tcp or udp, found `{0}`; for example: portredir explain {EXAMPLE}")]
    Protocol(String),
    /// The shell has taken `>` and the destination away.
    #[error(
        "the shell took `>` for a file to write to: quote the words, or write `to`: \
         portredir explain {EXAMPLE}"
    )]
    Shell,
    /// There is no destination.
    #[error(
        "expected `to` or `->` and the destination after the client, found `{0}`; for example: {EXAMPLE}"
    )]
    Arrow(String),
    /// An address cannot be read.
    #[error("`{0}` is not an address; write for example 10.0.0.5, 10.0.0.5:80 or [2001:db8::1]:80")]
    Addr(String),
    /// A port cannot be read.
    #[error("`{0}` is not a port from 1 to 65535")]
    Port(String),
    /// The destination has no port.
    #[error("the destination `{0}` has no port; write for example 10.0.0.5:80 or [2001:db8::1]:80")]
    NoPort(String),
    /// Client and destination are of two IP versions.
    #[error("`{0}` and `{1}` are of two IP versions")]
    Versions(IpAddr, IpAddr),
    /// Words are left.
    #[error("expected `on INTERFACE` or the end, found `{0}`")]
    Rest(String),
    /// A line of tcpdump is about something else.
    #[error("this line of tcpdump is about no TCP or UDP packet that comes in: `{0}`")]
    Capture(String),
    /// A line of tcpdump has names in place of numbers.
    #[error("`{0}` is not ADDRESS.PORT: let tcpdump print numbers, with -n")]
    Names(String),
}

/// The client of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A process of this host.
    Local,
    /// The sender of a packet.
    At(IpAddr),
}

/// A flow that a person asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The protocol.
    pub protocol: Protocol,
    /// The client.
    pub client: Client,
    /// The port of the client, if it is given.
    pub client_port: Option<Port>,
    /// The destination address.
    pub addr: IpAddr,
    /// The destination port.
    pub port: Port,
    /// The name of the ingress interface, if it is given.
    pub on: Option<String>,
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", name_of(self.protocol))?;
        let port = self.client_port.map(Port::get);
        match (self.client, port) {
            (Client::Local, None) => f.write_str("local")?,
            (Client::Local, Some(port)) => write!(f, "local:{port}")?,
            (Client::At(addr), None) => write!(f, "{addr}")?,
            (Client::At(addr), Some(port)) => f.write_str(&end(addr, port))?,
        }
        write!(f, " -> {}", end(self.addr, self.port.get()))?;
        match &self.on {
            Some(on) => write!(f, " on {on}"),
            None => Ok(()),
        }
    }
}

/// An address and a port.
#[must_use]
pub fn end(addr: IpAddr, port: u16) -> String {
    match addr {
        IpAddr::V4(addr) => format!("{addr}:{port}"),
        IpAddr::V6(addr) => format!("[{addr}]:{port}"),
    }
}

impl FromStr for Query {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        let words: Vec<_> = text.split_whitespace().collect();
        let is_ip = |word: &&str| ["IP", "IP6"].contains(word);
        match words.iter().position(is_ip) {
            Some(at) => captured(text.trim(), &words, at),
            None => spoken(&words),
        }
    }
}

/// Reads `tcp 203.0.113.9 -> 10.0.0.5:80 on eth0`.
fn spoken(words: &[&str]) -> Result<Query, QueryError> {
    let word = |i: usize| words.get(i).copied().unwrap_or_default();
    let protocol = match word(0) {
        "tcp" | "TCP" => Protocol::Tcp,
        "udp" | "UDP" => Protocol::Udp,
        other => return Err(QueryError::Protocol(other.to_owned())),
    };
    let (client, client_port) = client(word(1))?;
    match word(2) {
        "to" | "->" | ">" => {}
        "-" => return Err(QueryError::Shell),
        other => return Err(QueryError::Arrow(other.to_owned())),
    }
    let (addr, port) = addr_and_port(word(3))?;
    let port = port.ok_or_else(|| QueryError::NoPort(word(3).to_owned()))?;
    let on = match words.get(4..).unwrap_or_default() {
        [] => None,
        ["on", name] => Some((*name).to_owned()),
        rest => return Err(QueryError::Rest(rest.join(" "))),
    };
    let query = Query {
        protocol,
        client,
        client_port,
        addr,
        port,
        on,
    };
    query.of_one_version()
}

impl Query {
    fn of_one_version(self) -> Result<Self, QueryError> {
        match self.client {
            Client::At(client) if client.is_ipv4() != self.addr.is_ipv4() => {
                Err(QueryError::Versions(client, self.addr))
            }
            _ => Ok(self),
        }
    }
}

fn client(word: &str) -> Result<(Client, Option<Port>), QueryError> {
    if let Some(rest) = word.strip_prefix("local") {
        return match rest.strip_prefix(':') {
            Some(number) => Ok((Client::Local, Some(port(number)?))),
            None if rest.is_empty() => Ok((Client::Local, None)),
            None => Err(QueryError::Addr(word.to_owned())),
        };
    }
    let (addr, port) = addr_and_port(word)?;
    Ok((Client::At(addr), port))
}

/// Reads an address that a port may follow: `10.0.0.5:80`, `[2001:db8::1]:80`.
fn addr_and_port(word: &str) -> Result<(IpAddr, Option<Port>), QueryError> {
    let unknown = || QueryError::Addr(word.to_owned());
    if let Ok(addr) = word.parse::<IpAddr>() {
        return Ok((addr, None));
    }
    let (addr, rest) = match word.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or_else(unknown)?,
        None => {
            let at = word.find(':').ok_or_else(unknown)?;
            word.split_at(at)
        }
    };
    let addr = addr.parse::<IpAddr>().map_err(|_| unknown())?;
    match rest.strip_prefix(':') {
        Some(number) => Ok((addr, Some(port(number)?))),
        None if rest.is_empty() => Ok((addr, None)),
        None => Err(unknown()),
    }
}

fn port(word: &str) -> Result<Port, QueryError> {
    let number = word.parse().ok().filter(|port: &u16| *port != 0);
    number
        .map(Port::new)
        .ok_or_else(|| QueryError::Port(word.to_owned()))
}

/// Reads a line of tcpdump; the IP version is the word at a place.
///
/// `12:00:00.000001 eth0  In  IP 203.0.113.9.40000 > 10.0.0.5.80: Flags [S], …`
fn captured(line: &str, words: &[&str], at: usize) -> Result<Query, QueryError> {
    let unknown = || QueryError::Capture(line.to_owned());
    let [source, ">", destination, rest @ ..] = words.get(at + 1..).unwrap_or_default() else {
        return Err(unknown());
    };
    let is_out = at > 0 && words[at - 1] == "Out";
    if is_out || rest.first().is_some_and(|word| word.starts_with("ICMP")) {
        return Err(unknown());
    }
    let protocol = if rest.first() == Some(&"Flags") {
        Protocol::Tcp
    } else {
        Protocol::Udp
    };
    let (client, client_port) = dotted(source)?;
    let (addr, port) = dotted(destination.trim_end_matches(':'))?;
    let is_direction = |word: &&str| ["In", "B", "M", "P"].contains(word);
    let has_interface = at >= 2 && words.get(at - 1).is_some_and(is_direction);
    let query = Query {
        protocol,
        client: Client::At(client),
        client_port: Some(client_port),
        addr,
        port,
        on: has_interface.then(|| words[at - 2].to_owned()),
    };
    query.of_one_version()
}

/// Reads `10.0.0.5.80`.
fn dotted(word: &str) -> Result<(IpAddr, Port), QueryError> {
    let unknown = || QueryError::Names(word.to_owned());
    let (addr, number) = word.rsplit_once('.').ok_or_else(unknown)?;
    let addr = addr.parse().map_err(|_| unknown())?;
    let port = port(number).map_err(|_| unknown())?;
    Ok((addr, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        match text.parse::<Query>() {
            Ok(query) => query.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn words_are_read_and_printed() {
        for text in [
            "tcp 203.0.113.9 -> 10.0.0.5:80 on eth0",
            "udp 203.0.113.9:40000 -> 10.0.0.5:53",
            "tcp [2001:db8::9]:40000 -> [2001:db8::1]:80 on wg0",
            "tcp 2001:db8::9 -> [2001:db8::1]:80",
            "tcp local -> 127.0.0.1:80",
            "udp local:5000 -> [::1]:53",
        ] {
            assert_eq!(read(text), text);
            assert_eq!(read(&text.replace("->", "to")), text);
        }
    }

    #[test]
    fn lines_of_tcpdump_are_read() {
        for (line, expected) in [
            (
                "12:00:00.000001 IP 203.0.113.9.40000 > 10.0.0.5.80: Flags [S], seq 1, length 0",
                "tcp 203.0.113.9:40000 -> 10.0.0.5:80",
            ),
            (
                "12:00:00.000001 eth0  In  IP 203.0.113.9.40000 > 10.0.0.5.80: Flags [S], seq 1",
                "tcp 203.0.113.9:40000 -> 10.0.0.5:80 on eth0",
            ),
            (
                "IP6 2001:db8::9.5000 > 2001:db8::1.53: UDP, length 4",
                "udp [2001:db8::9]:5000 -> [2001:db8::1]:53",
            ),
            (
                "12:00:00.1 IP 203.0.113.9.5000 > 10.0.0.5.53: 2+ A? example.org. (28)",
                "udp 203.0.113.9:5000 -> 10.0.0.5:53",
            ),
        ] {
            assert_eq!(read(line), expected);
        }
    }

    #[test]
    fn mistakes_say_what_to_type() {
        for (text, words) in [
            ("", "expected tcp or udp"),
            (
                "icmp 1.2.3.4 to 1.2.3.4:1",
                "expected tcp or udp, found `icmp`",
            ),
            (
                "tcp 203.0.113.9 - on eth0",
                "quote the words, or write `to`",
            ),
            ("tcp 203.0.113.9 10.0.0.5:80", "expected `to` or `->`"),
            (
                "tcp 203.0.113 to 10.0.0.5:80",
                "`203.0.113` is not an address",
            ),
            ("tcp 203.0.113.9 to 10.0.0.5", "has no port"),
            ("tcp 203.0.113.9 to 10.0.0.5:0", "`0` is not a port"),
            ("tcp 203.0.113.9 to [::1]:80", "two IP versions"),
            (
                "tcp 203.0.113.9 to 10.0.0.5:80 eth0",
                "expected `on INTERFACE`",
            ),
            ("IP a.http > b.80: Flags [S]", "with -n"),
            ("eth0 Out IP 1.2.3.4.5 > 1.2.3.5.6: Flags [S]", "comes in"),
            ("IP 1.2.3.4 > 1.2.3.5: ICMP echo request", "comes in"),
        ] {
            assert!(read(text).contains(words), "{text}: {}", read(text));
        }
    }
}
