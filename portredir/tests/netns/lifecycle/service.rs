//! The commands that the systemd unit runs to start, reload and stop.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::Tests;
use crate::lab::message::NOT_RELOADED;
use crate::lab::process::{Process, wait_for};
use crate::lab::program::{PROGRAM, link_state};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host, check_reaches};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("outlive/service", &[], service);
}

/// The systemd unit, whose commands a test runs in the place of systemd.
struct Unit<'a> {
    lab: &'a Lab,
    text: String,
    config: PathBuf,
    /// Where the service sends its notices (sd_notify(3)).
    notify: PathBuf,
    socket: UnixDatagram,
}

impl<'a> Unit<'a> {
    fn new(lab: &'a Lab) -> Self {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../packaging/systemd/portredir.service"
        );
        let config = lab.dir.0.join("etc");
        fs::create_dir(&config).expect("a directory");
        let notify = lab.dir.0.join("notify");
        let socket = UnixDatagram::bind(&notify).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self {
            lab,
            text: fs::read_to_string(path).expect("the unit"),
            config,
            notify,
            socket,
        }
    }

    /// Writes the file of rules.
    fn write(&self, text: &str) {
        fs::write(self.config.join("rules.toml"), text).expect("write a file");
    }

    /// Starts the program as the first lines of a key of the unit do, without the shell
    /// around it.
    fn start(&self, key: &str) -> Process {
        let value = self.text.split_once(&format!("\n{key}=")).expect(key).1;
        let line = value.split_once("/usr/bin/portredir ").expect(key).1;
        let line = line.split(['\n', ';']).next().expect(key);
        let config = format!("PORTREDIR_CONFIG={}", self.config.display());
        let notify = format!("NOTIFY_SOCKET={}", self.notify.display());
        let mut args = vec!["env", &config, &notify, "WATCHDOG_USEC=300000", PROGRAM];
        args.extend(line.split_whitespace());
        self.lab.host.start(&args)
    }

    /// Waits for a notice that has these words.
    fn wait_for_notice(&self, words: &str) {
        wait_for(words, || {
            let mut buffer = [0; 256];
            let length = self.socket.recv(&mut buffer).ok()?;
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            text.contains(words).then_some(())
        });
    }
}

/// The systemd unit starts, reloads and stops the program; the rules survive a
/// crash and a restart of the machine.
fn service() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let unit = Unit::new(&lab);
    unit.write("iface = 'h0'\nrules = ['80:8080/both']\n");
    assert!(unit.start("ExecStartPre").wait().success());
    let mut main = unit.start("ExecStart");
    unit.wait_for_notice("READY=1");
    unit.wait_for_notice("WATCHDOG=1");
    check_reaches(&lab, 80, &server);
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"before the reload");
    reload(&unit, &host, &mut main);
    conn.echo(b"after the reload");
    check_reaches(&lab, 81, &server);
    // A crash leaves everything as it is, and the next start finds it.
    main.kill();
    check_reaches(&lab, 81, &server);
    let mut main = unit.start("ExecStart");
    unit.wait_for_notice("READY=1");
    conn.echo(b"after a crash");
    let mut stop = unit.start("ExecStopPost");
    drop(conn);
    assert!(stop.wait().success(), "{}", stop.err());
    assert!(main.wait().success(), "{}", main.err());
    assert_eq!(link_state(&lab), host.before);
    // The machine starts again: nothing is there but the files.
    let mut main = unit.start("ExecStart");
    unit.wait_for_notice("READY=1");
    check_reaches(&lab, 81, &server);
    host.run(&["down"]);
    assert!(main.wait().success());
    host.down();
}

/// Reloads a file that is wrong, then one that is valid.
fn reload(unit: &Unit<'_>, host: &Host<'_>, main: &mut Process) {
    unit.write("rules = ['80:']\n");
    let mut refused = unit.start("ExecReload");
    assert_eq!(refused.wait().code(), Some(2), "{}", refused.err());
    main.signal(Signal::SIGHUP);
    main.wait_for_words(NOT_RELOADED);
    assert_eq!(host.rules(), ["80:8080/both"]);
    unit.write("iface = 'h0'\nrules = ['81:8080/both']\n");
    let mut applied = unit.start("ExecReload");
    assert!(applied.wait().success(), "{}", applied.err());
    assert_eq!(host.rules(), ["81:8080/both"]);
    main.signal(Signal::SIGHUP);
    unit.wait_for_notice("RELOADING=1");
    // The new program does not listen yet. This signal waits for it.
    main.signal(Signal::SIGHUP);
    unit.wait_for_notice("READY=1");
    unit.wait_for_notice("RELOADING=1");
    unit.wait_for_notice("READY=1");
    assert_eq!(host.rules(), ["81:8080/both"]);
}
