//! Words and options of other programs, and options before the command.

use crate::{failure, portredir, unprivileged};

#[test]
fn an_unknown_word_is_an_unknown_command() {
    for (word, meant) in [
        ("stauts", "did you mean `status`?"),
        ("lst", "unknown command `lst`"),
        ("get", "did you mean `rules`?"),
        ("flush", "did you mean `down`?"),
        ("sta_tus", "did you mean `status`?"),
        ("status!", "did you mean `status`?"),
        ("übersicht", "the commands are plan, up, down"),
        ("firewall", "the commands are plan, up, down"),
    ] {
        let (code, message) = failure(&[word, "80:8080"]);
        assert_eq!(code, Some(2), "{message}");
        assert!(
            message.contains(&format!("unknown command `{word}`")) && message.contains(meant),
            "{message}"
        );
    }
}

#[test]
fn a_word_after_options_begins_no_rule() {
    for args in [
        &["--iface", "lo", "stauts"][..],
        &["--json", "stauts", "80:8080"],
        &["-q", "stauts"],
    ] {
        let (code, message) = failure(args);
        assert_eq!(code, Some(2), "{args:?}: {message}");
        let meant = "unknown command `stauts`; did you mean `status`?";
        assert!(message.contains(meant), "{args:?}: {message}");
    }
}

#[test]
fn names_of_other_programs_are_commands() {
    let help = |args: &[&str]| {
        let output = portredir(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (name, command) in [
        ("list", "rules"),
        ("ls", "rules"),
        ("show", "status"),
        ("del", "rm"),
        ("delete", "rm"),
        ("remove", "rm"),
        ("stop", "down"),
        ("reload", "apply"),
        ("flows", "connections"),
    ] {
        assert_eq!(
            help(&[name, "--help"]),
            help(&[command, "--help"]),
            "{name}"
        );
        assert_eq!(help(&["help", name]), help(&[command, "--help"]), "{name}");
    }
    assert_eq!(help(&["help"]), help(&["--help"]));
    assert_eq!(help(&["version"]), help(&["--version"]));
    let (code, message) = failure(&["help", "stauts"]);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("did you mean `status`?"), "{message}");
}

#[test]
fn quiet_says_errors_alone() {
    let rules = ["80:8080", "22:2222"];
    let said = |options: &[&str]| {
        let output = portredir(&[options, &["plan"], &rules].concat());
        assert!(output.status.success(), "{output:?}");
        assert!(!output.stdout.is_empty());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&[]).contains("warning: "));
    assert_eq!(said(&["-q"]), "");
    assert_eq!(said(&["-vq"]).matches("warning: ").count(), 0);
    let (code, message) = failure(&["-q", "plan", "0:8080"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("port 0 cannot be used"), "{message}");
}

#[test]
fn tables_come_without_their_heads() {
    let table = |args: &[&str]| {
        let output = portredir(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (args, head) in [
        (&["plan", "--iface", "lo", "80:8080"][..], "INTERFACE  "),
        (&["features"], "FEATURE "),
    ] {
        let whole = table(args);
        let bare = table(&[args, &["--no-header"]].concat());
        let lines: Vec<_> = whole
            .lines()
            .filter(|line| !line.starts_with(head))
            .collect();
        assert_eq!(bare.lines().collect::<Vec<_>>(), lines, "{whole}");
        assert_eq!(whole.lines().count(), lines.len() + 1, "{whole}");
    }
}

#[test]
fn another_name_of_a_command_is_one() {
    for args in [&["watch"][..], &["follow"], &["-v", "follow"]] {
        assert_eq!(unprivileged(args).status.code(), Some(4), "{args:?}");
    }
}

#[test]
fn words_of_other_programs_are_translated() {
    for (words, answer) in [
        (
            "-p tcp --dport 80 -j REDIRECT --to-ports 8080",
            "portredir 80:8080\n",
        ),
        (
            "iptables -t nat -A PREROUTING -i eth0 -p udp --dport 53:60 -j REDIRECT --to-ports 5353",
            "portredir 53-60:5353/udp on eth0\n",
        ),
        (
            "-t nat -A PREROUTING -s 10.0.0.0/8 -p tcp --dport 80 -j REDIRECT --to-port 8080",
            "portredir 80:8080 from 10.0.0.0/8\n",
        ),
        (
            "iptables -t nat -A PREROUTING -d 10.0.0.1 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8080",
            "portredir 10.0.0.1:80:10.0.0.5:8080\n",
        ),
        (
            "sudo ip6tables -t nat -I PREROUTING 1 -p tcp -m multiport --dports 80,443 -j REDIRECT --to-port 8080",
            "portredir 80:8080 443:8080\n",
        ),
        (
            "iptables -A PREROUTING -p tcp --dport 80 -m owner --uid-owner 7 -j REDIRECT --to-ports 81",
            "no rule says this: `-m`: no condition",
        ),
        (
            "up iptables -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080",
            "portredir 80:8080\n",
        ),
        (
            "firewall-cmd --add-forward-port=port=80:proto=udp:toport=8080",
            "portredir 80:8080/udp\n",
        ),
        ("docker run -p 80:8080 nginx", "portredir 80:8080\n"),
        ("tcp dport 80 redirect to :8080", "portredir 80:8080\n"),
        ("-p 80:8080", "portredir 80:8080\n"),
        ("-d 10.0.0.1", "write: portredir 80:8080"),
        ("--interface eth0 80:8080", "write --iface NAME"),
        ("-n 80:8080", "write: portredir plan RULE"),
    ] {
        let args: Vec<_> = words.split(' ').collect();
        let (code, message) = failure(&args);
        assert_eq!(code, Some(2), "{words}: {message}");
        assert!(message.contains(answer), "{words}: {message}");
        assert!(!message.contains("'-- "), "{words}: {message}");
    }
}

#[test]
fn a_line_in_quotes_is_translated() {
    let line = "iptables -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080";
    let (code, message) = failure(&[line]);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("write: portredir 80:8080\n"), "{message}");
    let (code, message) = failure(&["80:8080:tcp"]);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("as in `80:8080/tcp`"), "{message}");
}

#[test]
fn verbose_comes_before_or_after_the_command() {
    for args in [
        &["-v", "plan", "80:8080"][..],
        &["--verbose", "-vv", "plan", "80:8080"],
        &["plan", "-v", "80:8080"],
        &["plan", "-i", "lo", "80:8080"],
    ] {
        let output = portredir(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}

#[test]
fn durations_take_units() {
    for text in ["0.5", "2s", "500ms", "5min", "1h", "1min30s"] {
        let args = ["plan", "--drain-timeout", text, "80:8080"];
        let output = portredir(&args);
        assert!(output.status.success(), "{text}: {output:?}");
    }
    for text in ["5 parsecs", "s", "10x", "1.2.3s", "2h", "-1s", ""] {
        let drain_timeout = format!("--drain-timeout={text}");
        let (code, message) = failure(&["plan", &drain_timeout, "80:8080"]);
        assert_eq!(code, Some(2), "{text}: {message}");
    }
    // Each option that takes a time takes the same forms, and says so.
    for args in [
        &["--interval", "soon", "80:8080"][..],
        &["add", "--confirm", "soon", "80:8080"],
        &["down", "--drain-timeout", "soon"],
    ] {
        let (code, message) = failure(args);
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains("10s, 1.5s or 5min"), "{message}");
    }
}
