//! The commands of the program on the host of a lab, one after the other, and
//! the checks that every test of a command needs.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Cell;
use crate::lab::process::{Process, note, wait_for};
use crate::lab::program::{PROGRAM, link_state};
use crate::lab::{Family, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused};
use crate::peer::echo::EchoServer;

pub const CELL: Cell = Cell {
    engine: "auto",
    is_offloaded: true,
    family: Family::V4,
};

/// The commands on the host of a lab; takes everything down when dropped.
pub struct Host<'a> {
    lab: &'a Lab,
    pub before: Vec<String>,
}

impl<'a> Host<'a> {
    pub fn of(lab: &'a Lab) -> Self {
        Self {
            lab,
            before: link_state(lab),
        }
    }

    /// Starts a command.
    pub fn start(&self, args: &[&str]) -> Process {
        let mut all = vec![PROGRAM];
        all.extend(args);
        self.lab.host.start(&all)
    }

    /// Runs a command that has to come to a good end; what it printed.
    pub fn run(&self, args: &[&str]) -> String {
        let mut process = self.start(args);
        let status = process.wait();
        assert!(status.success(), "{args:?}: {status} {}", process.err());
        process.out()
    }

    /// Runs a command that has to fail by this exit code; what it said.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let mut process = self.start(args);
        let status = process.wait();
        let error = process.err();
        assert_eq!(status.code(), Some(code), "{args:?}: {error}");
        error
    }

    /// `up` on the link to the client, whatever runs.
    pub fn up(&self, args: &[&str]) -> String {
        let mut all = vec!["up", "--replace", "--iface", "h0"];
        all.extend(args);
        self.run(&all)
    }

    pub fn rules(&self) -> Vec<String> {
        self.run(&["rules"]).lines().map(str::to_owned).collect()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.run(&["status", "--json"])).expect("JSON")
    }

    /// Ends it, and looks that all is as it was.
    pub fn down(self) {
        self.run(&["down", "--drain-timeout", "0"]);
        assert_eq!(link_state(self.lab), self.before);
        assert!(!self.pins().exists(), "{:?} is left", self.pins());
        self.fails(3, &["status"]);
    }

    pub fn kill_watcher(&self) {
        let pid = self.status()["pid"].as_u64().expect("a pid").to_string();
        self.lab.host.run(&["kill", "-9", &pid]);
        wait_for("nobody to follow", || {
            self.status()["role"].is_null().then_some(())
        });
    }

    /// The directory of its pins.
    pub fn pins(&self) -> PathBuf {
        let cookie = self
            .lab
            .host
            .enter(portredir::sys::netns::netns_cookie)
            .expect("a cookie");
        Path::new("/sys/fs/bpf/portredir").join(cookie.to_string())
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut down = self.start(&["down", "--force"]);
            down.wait();
            note(&format!("down --force: {}", down.err()));
        }
    }
}

/// Whether a server answers at a port.
pub fn answers(lab: &Lab, proto: Proto, port: u16) -> bool {
    !is_refused(&lab.client, proto, Family::V4.host(port))
}

/// Talks by a port, and looks who was talked to.
pub fn check_reaches(lab: &Lab, port: u16, server: &EchoServer) {
    for proto in PROTOS {
        let message = format!("{proto:?} by {port}");
        let mut conn = Conn::to(&lab.client, proto, 0, Family::V4.host(port));
        conn.echo(message.as_bytes());
        server.peer(proto, message.as_bytes());
    }
}

/// Numbers below others (xorshift64); `PORTREDIR_TEST_SEED` gives other ones.
pub fn random(part: u64) -> impl FnMut(u64) -> u64 {
    let seed = std::env::var("PORTREDIR_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut state =
        seed.unwrap_or(0x9e37_79b9_7f4a_7c15_u64) ^ (part + 1).wrapping_mul(0x2545_f491_4f6c_dd1d);
    move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}
