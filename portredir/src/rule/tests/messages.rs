//! The messages for wrong rules.

use std::fmt::Write as _;

use crate::rule::{Rule, RuleError};

const WRONG: &[&str] = &[
    // Nothing, and less than enough.
    "",
    " ",
    "\t\n",
    "80",
    "80:",
    ":80",
    ":",
    "::",
    "80/udp",
    "80-90",
    "8080:",
    "10.0.0.5:80",
    "10.0.0.5",
    "[2001:db8::1]:80",
    "[2001:db8::1]",
    "10.0.0.5:",
    "10.0.0.5:80/udp",
    // Between the ports.
    "80->8080",
    "80=8080",
    "80 8080",
    "80;8080",
    "80::8080",
    "80→8080",
    "80>8080",
    "80 -> 8080",
    "80, 8080",
    "80.8080",
    "80：8080",
    "8080/tcp:80",
    "8080/sctp:80",
    "tcp:80:8080",
    "udp/53:5353",
    "tcp/80:8080",
    "80:8080:9090",
    "80:8080:tcp",
    // Numbers.
    "0:8080",
    "80:0",
    "65536:8080",
    "80:65536",
    "99999999999:80",
    "-1:8080",
    "+80:8080",
    "80:-1",
    "080:8080",
    "80:08080",
    "0x50:8080",
    "0xzz:8080",
    "1f90:80",
    "80x:8080",
    "８０:8080",
    "80.5:8080",
    "http:8080",
    "80:https",
    "http:https",
    "Domain:5353",
    "all:8080",
    "*:8080",
    "_:8080",
    // Ranges.
    "90-80:8080",
    "80-90:9090-9080",
    "80-90:9080-9085",
    "80:9080-9085",
    "60000-60010:65530-65531",
    "8000-70000:9000",
    "8000-8100:65500-65600",
    "80-:8080",
    "-90:8080",
    "80-90-100:8080",
    "80–90:8080",
    "80..90:8080",
    "80-90:80-90",
    "80:80",
    "8080:8080",
    "80,443:8080",
    "80-90:80-95",
    // Other hosts.
    "80:10.0.0.1:8080",
    "80:10.0.0.1",
    "80:localhost:8080",
    "80:localhost",
    "80:[::1]:8080",
    "80:127.0.0.1:8080",
    "80:web.example:8080",
    "80:web.example",
    "80:2001:db8::1:8080",
    "80:[2001:db8::1]",
    "80:[",
    // Addresses of this host.
    "2001:db8::1:443:8443",
    "::1:80:8080",
    "2001:db8::1",
    "fe80::1%eth0:80:8080",
    "[2001:db8::1:80:8080",
    "[10.0.0.5]:80:8080",
    "[::ffff:10.0.0.5]:80:8080",
    "[fe80::1%eth0]:80:8080",
    "[fe80::1%]:80:8080",
    "[]:80:8080",
    "[web]:80:8080",
    "[2001:db8::1]80:8080",
    "[2001:db8::1]/64:80:8080",
    "224.0.0.1:80:8080",
    "[ff02::1]:80:8080",
    "255.255.255.255:80:8080",
    "0.0.0.0:80:8080",
    "[::]:80:8080",
    "10.0.0:80:8080",
    "10.0.0.256:80:8080",
    "010.0.0.1:80:8080",
    "10.0.0.0/8:80:8080",
    "localhost:80:8080",
    "eth0:80:8080",
    "*:80:8080",
    "http://10.0.0.5:80",
    "10.0.0.5::80:8080",
    // Protocols.
    "80:8080/",
    "80:8080/sctp",
    "80:8080/tcp+udp",
    "80:8080/tcp,udp",
    "80:8080/icmp",
    "80:8080/6",
    "80:8080/tcp/udp",
    "80:8080 /udp",
    "80:8080 udp",
    "80:8080/ udp",
    "80:8080/all",
    "/",
    "/udp",
    // Clients.
    "80:8080 from",
    "80:8080 from ",
    "from 10.0.0.0/8",
    "80:8080 from home",
    "80:8080 from 10.0.0.0/33",
    "80:8080 from 10.0.0.0/",
    "80:8080 from 10/8",
    "80:8080 from 2001:db8::/129",
    "80:8080 from 10.0.0.0/255.0.0.0",
    "80:8080 from 10.1.2.3/8",
    "80:8080 from 2001:db8::1/32",
    "80:8080 from ::ffff:10.0.0.0/104",
    "80:8080 from ::ffff:10.0.0.1",
    "80:8080 from 0.0.0.0",
    "80:8080 from ::",
    "80:8080 from fe80::1%eth0",
    "10.0.0.5:80:8080 from 2001:db8::/32",
    "[2001:db8::1]:80:8080 from 10.0.0.0/8",
    "80:8080 from 10.0.0.0/8 from 10.1.0.0/16",
    "80:8080 from 10.0.0.0/8,192.168.0.0/16",
    "80:8080 from on eth0",
    "80:8080 FROM 10.0.0.0/8",
    "80:8080from 10.0.0.0/8",
    "80:8080/udpfrom 10.0.0.0/8",
    // Interfaces.
    "80:8080 on",
    "80:8080 on ,",
    "80:8080 on eth0,",
    "80:8080 on eth0, wg0",
    "80:8080 on all",
    "80:8080 on !eth0",
    "80:8080 on eth[",
    "80:8080 on a***",
    "80:8080 on averyveryverylongname",
    "80:8080 on eth/0",
    "80:8080 on eth0:1",
    "80:8080 on ..",
    "80:8080 on eth0 on eth1",
    "80:8080 on eth0 wg0",
    "80:8080 On eth0",
    // Text after the ports.
    "80:8080 please",
    "80:8080,443:8443",
    "80:8080/tcp,443:8443",
    "80:8080 443:8443",
    "80:8080\n443:8443",
    "80:8080;443:8443",
    "80:8080-",
    "80:8080 -> web",
    "80:8080\u{1b}[31m",
    "80:8080 #web",
    // Quotes, and other alphabets.
    "\"80:8080\"",
    "'80:8080'",
    "“80:8080”",
    "\"80\":8080",
    "'",
    "`80:8080 on eth0`",
    "80:８080",
    // The syntax of firewalld.
    "port=80",
    "toport=8080",
    "port=80:proto=tcp",
    "port=80:toport=",
    "port=:toport=8080",
    "port=80:toport=8080:proto=",
    "port=80:toport=8080:proto=sctp",
    "port=80:port=81:toport=8080",
    "port=80:toport=8080:toport=8081",
    "port=80:proto=tcp:toport=8080:toaddr=10.0.0.1",
    "port=80:to-port=8080",
    "port=80,toport=8080",
    "port=80x:toport=8080",
    "port=80:8080",
    "port=80:proto=tcp:toport=80",
    "port=80:toport=8080:",
    "port=80 toport=8080",
    "toaddr=:port=80",
];

/// Checks that text in backticks is a valid rule, alone or after another rule.
pub(super) fn hint_is_right(error: &RuleError) -> Result<(), String> {
    let hint = error.hint();
    for spelled in hint.split('`').skip(1).step_by(2) {
        let text = if spelled.starts_with("from ") || spelled.starts_with("on ") {
            format!("80:8080 {spelled}")
        } else if spelled.starts_with('/') {
            format!("80:8080{spelled}")
        } else {
            spelled.to_owned()
        };
        if let Err(wrong) = text.parse::<Rule>() {
            return Err(format!("{error}\nis told to write\n{wrong}"));
        }
    }
    Ok(())
}

#[test]
fn messages() {
    let mut all = String::new();
    for text in WRONG {
        let error = match text.parse::<Rule>() {
            Ok(rule) => panic!("{text:?} is taken for {rule}"),
            Err(error) => error,
        };
        if let Err(problem) = hint_is_right(&error) {
            panic!("{problem}");
        }
        writeln!(all, "{text:?}\n{error}\n").expect("a string takes all");
    }
    insta::assert_snapshot!(all);
}
