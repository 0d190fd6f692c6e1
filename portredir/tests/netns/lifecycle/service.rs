//! What the systemd unit starts, reloads and stops.

use std::fs;

use nix::sys::signal::Signal;

use crate::Tests;
use crate::lab::process::wait_for;
use crate::lab::program::{PROGRAM, link_state};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host, reaches};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::Echo;

pub fn add(tests: &mut Tests) {
    tests.add("outlive/service", &[], service);
}

/// What the unit of systemd starts, stops and reloads; and what is there after
/// the machine was started again.
fn service() {
    let lab = Lab::new(&CELL);
    let server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../packaging/systemd/portredir.service"
    );
    let unit = fs::read_to_string(unit).expect("the unit");
    let line = |key: &str| {
        let key = format!("{key}=/usr/bin/portredir ");
        let line = unit.lines().find_map(|line| line.strip_prefix(&key));
        let line = line.unwrap_or_else(|| panic!("{key}"));
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let config = lab.dir.0.join("etc");
    fs::create_dir(&config).expect("a directory");
    let write = |text: &str| fs::write(config.join("rules.toml"), text).expect("write a file");
    let notify = lab.dir.0.join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&notify).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let start = |key: &str| {
        let mut args = vec![
            "env".to_owned(),
            format!("PORTREDIR_CONFIG={}", config.display()),
            format!("NOTIFY_SOCKET={}", notify.display()),
            "WATCHDOG_USEC=300000".to_owned(),
            PROGRAM.to_owned(),
        ];
        args.extend(line(key));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        lab.host.start(&args)
    };
    let told = |words: &str| {
        wait_for(words, || {
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer).ok()?;
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            text.contains(words).then_some(())
        });
    };
    write("iface = 'h0'\nrules = ['80:8080/both']\n");
    assert!(start("ExecStartPre").wait().success());
    let mut main = start("ExecStart");
    told("READY=1");
    told("WATCHDOG=1");
    reaches(&lab, 80, &server);
    // Reload: first a file that is wrong.
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"before the reload");
    write("rules = ['80:']\n");
    main.signal(Signal::SIGHUP);
    main.wait_for_words("not reloaded");
    assert_eq!(host.rules(), ["80:8080/both"]);
    write("iface = 'h0'\nrules = ['81:8080/both']\n");
    main.signal(Signal::SIGHUP);
    told("RELOADING=1");
    told("READY=1");
    assert_eq!(host.rules(), ["81:8080/both"]);
    conn.echo(b"after the reload");
    reaches(&lab, 81, &server);
    // A crash leaves everything as it is, and the next start finds it.
    main.kill();
    reaches(&lab, 81, &server);
    let mut main = start("ExecStart");
    told("READY=1");
    conn.echo(b"after a crash");
    let mut stop = start("ExecStop");
    drop(conn);
    assert!(stop.wait().success(), "{}", stop.err());
    assert!(main.wait().success(), "{}", main.err());
    assert_eq!(link_state(&lab), host.before);
    // The machine starts again: nothing is there but the files.
    let mut main = start("ExecStart");
    told("READY=1");
    reaches(&lab, 81, &server);
    host.run(&["down"]);
    assert!(main.wait().success());
    host.down();
}
