//! A DNS server.

use crate::lab::Lab;
use crate::lab::namespace::Namespace;
use crate::lab::process::Process;

/// A name server for `name.test`.
pub fn dns_server(lab: &Lab, port: u16) -> Process {
    dns_server_at(&lab.host, port)
}

/// A name server on any host.
pub fn dns_server_at(at: &Namespace, port: u16) -> Process {
    let mut server = at.start(&[
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--log-facility=-",
        "--no-resolv",
        "--no-hosts",
        "--pid-file",
        "--user=root",
        "--host-record=name.test,192.0.2.7,2001:db8::7",
        &format!("--port={port}"),
    ]);
    server.wait_for_words("started");
    server
}
