//! `--confirm`: a change that nobody confirms is rolled back.

use std::time::Duration;

use crate::Tests;
use crate::lab::Lab;
use crate::lab::message::{ROLLED_BACK, UNCONFIRMED};
use crate::lab::process::wait_for;
use crate::lab::program::link_state;
use crate::lifecycle::host::{CELL, Host, answers};
use crate::peer::conn::Proto;
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("outlive/confirm", &[], confirm);
}

fn confirm() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    // Rolled back to nothing.
    host.up(&["--confirm", "1s", "80:8080"]);
    assert!(answers(&lab, Proto::Tcp, 80));
    wait_for("the end", || (!host.pins().exists()).then_some(()));
    assert_eq!(link_state(&lab), host.before);
    host.up(&["80:8080"]);
    host.fails(1, &["confirm"]);
    // Confirmed, so it stays.
    host.run(&["add", "--confirm", "2", "81:8080"]);
    assert!(host.status()["confirm_within"].as_u64() <= Some(2));
    let error = host.fails(1, &["add", "82:8080"]);
    assert!(error.contains(UNCONFIRMED), "{error}");
    host.run(&["confirm"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(host.rules(), ["80:8080", "81:8080"]);
    // Rolled back, also when another watcher has to do it.
    host.run(&["rm", "--confirm", "2s", "80:8080"]);
    host.kill_watcher();
    let mut watcher = host.start(&["follow"]);
    wait_for("the old rules", || {
        (host.rules() == ["80:8080", "81:8080"]).then_some(())
    });
    // `status` says so until the next change.
    assert!(host.run(&["status"]).contains(ROLLED_BACK));
    assert!(host.status()["rolled_back_ago"].as_u64() < Some(60));
    host.run(&["add", "82:8080"]);
    assert!(host.status()["rolled_back_ago"].is_null());
    host.down();
    assert!(watcher.wait().success());
}
