//! A link that is down for a moment, as when a cable is plugged again.

use std::thread::sleep;
use std::time::Duration;

use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;

/// How long the link stays down.
const DOWN: Duration = Duration::from_millis(200);

/// One end of a link: its host and its name.
pub type End<'a> = (&'a Namespace, &'a str);

/// Sets one end down for 200 ms, and returns as soon as the kernel has the link up and the
/// routes of both ends back. Addresses stay, except link-local ones of the first end.
pub fn flap(end: End<'_>, peer: End<'_>, while_down: impl FnOnce()) {
    let ends = [end, peer];
    for (at, name) in ends {
        // Otherwise IPv6 would forget the addresses (`addrconf_ifdown`).
        at.sysctl(&format!("ipv6/conf/{name}/keep_addr_on_down"), "1");
    }
    let before = ends.map(routes);
    let (at, name) = end;
    at.ip(&format!("link set {name} down"));
    while_down();
    sleep(DOWN);
    at.ip(&format!("link set {name} up"));
    for (end, before) in ends.into_iter().zip(before) {
        wait_for(&format!("{} to be up again", end.1), || {
            let now = routes(end);
            let has_all = before.iter().all(|route| now.contains(route));
            (is_up(end) && has_all).then_some(())
        });
    }
}

fn is_up((at, name): End<'_>) -> bool {
    let shown = at.run(&["ip", "-o", "link", "show", "dev", name]);
    shown.contains(" state UP ")
}

/// The routes of IPv6 for unicast, which come back after `ip` has returned.
fn routes((at, name): End<'_>) -> Vec<String> {
    let shown = at.run(&["ip", "-6", "route", "show", "table", "all", "dev", name]);
    let is_kept = |line: &&str| {
        ["fe80::", "anycast", "multicast"]
            .iter()
            .all(|word| !line.contains(word))
    };
    shown
        .lines()
        .filter(is_kept)
        .map(|line| line.trim_end().to_owned())
        .collect()
}
