//! Names and comments of rules, and what `diff` says about the rules of a file.

use std::fs;

use serde_json::Value;

use crate::Tests;
use crate::lab::{Lab, schema};
use crate::lifecycle::host::{CELL, Host, check_reaches};
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("outlive/labels", &[], labels);
    tests.add("outlive/labels_in_files", &[], in_files);
    tests.add("outlive/diff", &["python3"], diff);
}

/// A name and a comment are kept by every command, and a name stands for its rules.
fn labels() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let rules = [
        "80:8080/both name web # OPS-1",
        "81:8080/both from 10.9.0.0/16 name web",
        "82:8080",
    ];
    let printed = host.up(&[
        rules[0],
        "81:8080/both",
        "from",
        "10.9.0.0/16",
        "name",
        "web",
        rules[2],
    ]);
    assert_eq!(
        printed,
        format!("+ {}\n+ {}\n+ {}\n", rules[0], rules[1], rules[2])
    );
    assert_eq!(host.rules(), rules);
    let json: Value = serde_json::from_str(&host.run(&["rules", "--json"])).expect("JSON");
    assert_eq!(json["rules"][0], "80:8080/both");
    let object = &json["rule_objects"][0];
    assert_eq!(
        (&object["name"], &object["comment"]),
        (&"web".into(), &"OPS-1".into())
    );
    assert_eq!(json["rule_objects"][2]["name"], Value::Null);
    let status = host.run(&["status"]);
    assert!(
        status.contains("80:8080/both: name web # OPS-1\n"),
        "{status}"
    );
    check_reaches(&lab, 80, &server);
    relabelled(&host);
    by_name(&host);
    host.down();
}

/// Another label is no other rule: counters go on.
fn relabelled(host: &Host<'_>) {
    let flows = || {
        host.status()["rules"][0]["flows"]
            .as_u64()
            .expect("a number")
    };
    let before = flows();
    assert!(before > 0);
    let relabel = ["add", "80:8080/both # OPS-2"];
    let lines = "- 80:8080/both name web # OPS-1\n+ 80:8080/both name web # OPS-2\n";
    assert_eq!(host.run(&[&relabel[..], &["-n"]].concat()), lines);
    assert_eq!(host.rules()[0], "80:8080/both name web # OPS-1");
    assert_eq!(
        host.run(&[&relabel[..], &["--confirm", "60s"]].concat()),
        lines
    );
    host.run(&["confirm"]);
    assert_eq!(host.run(&relabel), "");
    assert_eq!(host.run(&["add", "80:8080/both"]), "");
    assert_eq!(host.rules()[0], "80:8080/both name web # OPS-2");
    assert_eq!(flows(), before);
}

/// A name stands for its rules, of which one goes after the other.
fn by_name(host: &Host<'_>) {
    let error = host.fails(1, &["replace", "web", "80:9090"]);
    assert!(
        error.contains("several rules have the name `web`"),
        "{error}"
    );
    host.fails(2, &["replace", "web", "other"]);
    assert_eq!(host.run(&["rm", "-n", "web"]).lines().count(), 2);
    assert_eq!(host.rules().len(), 3);
    assert_eq!(
        host.run(&["rm", "81:8080/both from 10.9.0.0/16"]),
        "- 81:8080/both from 10.9.0.0/16 name web\n"
    );
    let error = host.fails(1, &["rm", "82:8080", "wep"]);
    assert!(
        error.contains("no rule has the name `wep`; there is web"),
        "{error}"
    );
    assert_eq!(host.run(&["rm", "--if-exists", "wep"]), "");
    assert_eq!(host.rules().len(), 2);
    // The label stays where only the target is another one.
    let printed = host.run(&["replace", "web", "80:9090/both"]);
    let new = "80:9090/both name web # OPS-2";
    assert_eq!(
        printed,
        format!("- 80:8080/both name web # OPS-2\n+ {new}\n")
    );
    assert_eq!(host.run(&["rm", "web"]), format!("- {new}\n"));
    // A label goes with its rule.
    assert_eq!(host.run(&["add", "80:9090/both"]), "+ 80:9090/both\n");
}

/// `save` writes labels, `up` and `apply` read them, and so do tables.
fn in_files() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let file = lab.dir.0.join("rules.toml");
    let path = file.to_str().expect("text");
    let rule = r#"80:8080 name web # "OPS-1" \ #2"#;
    host.up(&[rule, "81:8081"]);
    host.run(&["save", path]);
    let rules = host.rules();
    host.run(&["down"]);
    host.run(&["up", "--config", path]);
    assert_eq!(host.rules(), rules);
    assert_eq!(host.rules()[0], rule);
    assert_eq!(host.run(&["diff", path]), "");
    // A file that `save` wrote has no words of a person: none is kept.
    host.run(&["save", path]);
    assert!(!lab.dir.0.join("rules.toml~").exists());
    let table = "[[rule]]\nlisten = 80\ntargets = [8080]\nname = 'shop'\ncomment = 'moved in May'\n\
                 [[rule]]\nlisten = 81\ntargets = [8081]\nfrom = ['10.0.0.0/8', '192.0.2.0/24']\nname = 'admin'\n";
    fs::write(&file, table).expect("write a file");
    host.run(&["apply", "-f", path]);
    assert_eq!(
        host.rules(),
        [
            "80:8080 name shop # moved in May",
            "81:8081 from 10.0.0.0/8 name admin",
            "81:8081 from 192.0.2.0/24 name admin",
        ]
    );
    // A change of labels alone is one, and comes back if it is not confirmed.
    fs::write(&file, table.replace("moved in May", "x")).expect("write a file");
    let changed = host.run(&["apply", "-f", path, "--confirm", "1s"]);
    assert_eq!(
        changed,
        "- 80:8080 name shop # moved in May\n+ 80:8080 name shop # x\n"
    );
    crate::lab::process::wait_for("the old label", || {
        (host.rules()[0] == "80:8080 name shop # moved in May").then_some(())
    });
    host.down();
}

/// `diff` names what `up` would change, and its exit code tells whether that is nothing.
fn diff() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let file = lab.dir.0.join("rules.toml");
    let path = file.to_str().expect("text");
    let diff = |code: i32, args: &[&str]| {
        let mut process = host.start(&[&["diff", path], args].concat());
        let status = process.wait();
        assert_eq!(status.code(), Some(code), "{}", process.err());
        (process.out(), process.err())
    };
    let write = |text: &str| fs::write(&file, text).expect("write a file");
    diff(2, &[]);
    write("iface = 'h0'\nrules = ['80:8080', '81:8081 name b']\n");
    diff(3, &[]);
    host.run(&["up", "--config", path]);
    assert_eq!(diff(0, &[]), (String::new(), String::new()));
    let (json, _) = diff(0, &["--json"]);
    schema::check("diff", &json);
    write("iface = 'h0'\nrules = ['81:8081 name b', '80:8080']\n");
    let (out, said) = diff(1, &[]);
    assert!(
        out.is_empty() && said.contains("another order"),
        "{out}{said}"
    );
    write("hide-target = true\nrules = ['80:8080 # x', '82:8082 name c']\n");
    let (out, said) = diff(1, &[]);
    assert_eq!(
        out,
        "- 81:8081 name b\n+ 82:8082 name c\n- 80:8080\n+ 80:8080 # x\n- hide-target = false\n\
         + hide-target = true\n- iface = \"h0\"\n+ iface = \"all\"\n"
    );
    assert!(
        said.contains(&format!("portredir up --replace --config {path}")),
        "{said}"
    );
    let (json, _) = diff(1, &["--json"]);
    schema::check("diff", &json);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["equal"], false);
    assert_eq!(json["removed"][0]["rule"], "81:8081");
    assert_eq!(json["added"][0]["name"], "c");
    assert_eq!(json["relabelled"][0]["configured"]["comment"], "x");
    assert_eq!(json["options"][1]["running"], "h0");
    host.run(&["up", "--replace", "--config", path]);
    diff(0, &[]);
    write("rules = ['80:80']\n");
    let (_, said) = diff(2, &[]);
    assert!(said.contains("itself"), "{said}");
    host.down();
}
