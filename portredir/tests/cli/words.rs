//! Words and options of other programs, and options before the command.

use crate::{failure, portredir, unprivileged};

#[test]
fn an_unknown_word_is_an_unknown_command() {
    for (word, meant) in [
        ("stauts", "did you mean `status`?"),
        ("lst", "unknown command `lst`"),
        ("list", "did you mean `rules`?"),
        ("delete", "did you mean `rm`?"),
        ("stop", "did you mean `down`?"),
        ("help", "did you mean `--help`?"),
        ("completion", "the commands are plan, up, down"),
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
        ("tcp dport 80 redirect to :8080", "portredir 80:8080\n"),
        ("-p 80:8080", "portredir 80:8080\n"),
        ("-d 10.0.0.1", "write: portredir 80:8080"),
        ("--interface eth0 80:8080", "write --iface NAME"),
        ("-q 80:8080", "2>/dev/null"),
    ] {
        let args: Vec<_> = words.split(' ').collect();
        let (code, message) = failure(&args);
        assert_eq!(code, Some(2), "{words}: {message}");
        assert!(message.contains(answer), "{words}: {message}");
        assert!(!message.contains("'-- "), "{words}: {message}");
    }
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
