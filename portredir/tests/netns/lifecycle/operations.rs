//! The commands of `docs/OPERATIONS.md`, in the order of the document, on a host to which
//! happens what the document tells. Numbers are not compared.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::Tests;
use crate::lab::committed::{Document, is_regenerating};
use crate::lab::program::PROGRAM;
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;
use crate::peer::listener::Listen;

const DOCUMENT: Document = Document {
    name: "OPERATIONS.md",
    file: concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md"),
    tests: "operations",
};

/// The beginning of a command in the document.
const PROMPT: &str = "```\n$ ";

/// The number of commands.
const COMMANDS: usize = 10;

pub fn add(tests: &mut Tests) {
    tests.add("operations", &["nft", "bpftool"], operations);
}

fn operations() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let server = EchoServer::start(&lab.host, 8080);
    let _second = EchoServer::start(&lab.host, 8081);
    host.up(&["80:8080"]);
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"hello");
    server.peer(Proto::Tcp, b"hello");
    drop(conn);
    let mut loopback = None;
    let text = DOCUMENT.committed();
    let mut seen = String::new();
    let mut rest = text.as_str();
    let mut number = 0;
    while let Some((before, block)) = rest.split_once(PROMPT) {
        let (block, after) = block.split_once("```").expect("the end of a block");
        let command = block.lines().next().expect("a command");
        match number {
            2 => {
                let server = Listen::on(Ipv4Addr::LOCALHOST, 8082);
                loopback = Some(server.start(&lab.host, "loopback"));
                host.run(&["add", "82:8082"]);
            }
            3 => {
                host.run(&["rm", "82:8082"]);
                drop(loopback.take());
            }
            4 => {
                host.kill_watcher();
                let link = format!("{}/if11-ingress", host.pins().display());
                lab.host
                    .run(&["bpftool", "link", "detach", "pinned", &link]);
            }
            _ => {}
        }
        let out = shell(&lab, command);
        seen += &format!("{before}{PROMPT}{command}\n{out}```");
        rest = after;
        number += 1;
    }
    seen += rest;
    assert_eq!(number, COMMANDS);
    if is_regenerating() {
        DOCUMENT.check(&seen);
    } else {
        DOCUMENT.compare(&shape(&text), &shape(&seen));
    }
    for line in seen.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
    host.fails(3, &["status", "--check"]);
}

/// The output of a command of the document, of both streams.
fn shell(lab: &Lab, command: &str) -> String {
    let dir = Path::new(PROGRAM).parent().expect("a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("PATH={}:{path}", dir.display());
    let command = format!("{{ {}; }} 2>&1", command.replace("sudo ", ""));
    let mut process = lab.host.start(&["env", &path, "sh", "-c", &command]);
    // Some commands have to fail; the document says which.
    process.wait();
    // The servers are threads of this test.
    let name = std::fs::read_to_string("/proc/self/comm").expect("a name");
    process.out().replace(name.trim_end(), "server")
}

/// A text in which each number is `#`, and columns are one space apart.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for letter in text.chars() {
        match (letter.is_ascii_digit(), shape.ends_with('#')) {
            (true, true) => {}
            (true, false) => shape.push('#'),
            (false, _) if letter == ' ' && shape.ends_with(' ') => {}
            (false, _) => shape.push(letter),
        }
    }
    shape
}
