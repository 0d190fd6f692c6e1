//! One line for the log of the system, as syslog(3) sends it: to the socket of syslogd or
//! of the systemd journal. Where nobody listens, nothing happens.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// The socket of the log.
const SOCKET: &str = "/dev/log";

/// The facility `daemon` of RFC 3164, section 4.1.1.
const DAEMON: u8 = 3;

/// The length in bytes that every receiver takes (RFC 3164, section 4.1).
const LONGEST: usize = 1024;

/// The importance of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Severity {
    /// A person should look.
    Warning = 4,
    /// A normal change that a person may want to know.
    Notice = 5,
}

/// Sends a line. A log that is missing or full does not keep anybody from redirecting.
pub fn send(severity: Severity, text: &str) {
    if let Err(error) = send_to(Path::new(SOCKET), &line(severity, text)) {
        log::debug!("{SOCKET}: {error}");
    }
}

fn send_to(path: &Path, line: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(line.as_bytes(), path).map(drop)
}

/// The line without a time, which the receiver adds (RFC 3164, section 4.3.3): its clock
/// and its time zone count.
fn line(severity: Severity, text: &str) -> String {
    let priority = DAEMON * 8 + severity as u8;
    let pid = std::process::id();
    // A line break would begin another entry.
    let text = text.trim_end().replace(char::is_control, " ");
    let mut line = format!("<{priority}>portredir[{pid}]: {text}");
    if line.len() > LONGEST {
        let mut end = LONGEST - "…".len();
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_priority_tag_and_no_line_break() {
        let pid = std::process::id();
        assert_eq!(
            line(Severity::Notice, "add by root:\n+ 80:8080\n"),
            format!("<29>portredir[{pid}]: add by root: + 80:8080")
        );
        let long = line(Severity::Warning, &"é".repeat(2000));
        assert!(long.starts_with("<28>portredir[") && long.ends_with('…'));
        assert!(long.len() <= LONGEST, "{}", long.len());
    }

    #[test]
    fn a_line_arrives_or_is_lost_without_harm() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        send_to(&path, "nobody").expect_err("no socket");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        send_to(&path, "text").expect("send");
        let mut bytes = [0; 16];
        let len = socket.recv(&mut bytes).expect("a line");
        assert_eq!(&bytes[..len], b"text");
    }
}
