//! More rules than a node, or the object of its state, has room for.

use super::*;
use crate::agent::status::of_node;

/// Objects with so many rules each, all for different ports.
fn crowd(objects: usize, rules: usize) -> Vec<Arc<PortRedirect>> {
    let rule = |at: usize| {
        let protocol = if at < 64_000 { "TCP" } else { "UDP" };
        let port = 1_000 + at % 64_000;
        let name = format!("r{}", at % rules);
        json!({"name": name, "port": port, "protocol": protocol, "to": {"port": 500}})
    };
    let object = |at: usize| {
        let rules: Vec<_> = (at * rules..(at + 1) * rules).map(rule).collect();
        redirect(
            &format!("o{at:04}"),
            0,
            json!({"rules": rules, "force": true}),
        )
    };
    (0..objects).map(object).collect()
}

/// The size of the state of a node as the API server takes it.
fn bytes(desired: &Desired) -> usize {
    let status = of_node(desired, &[]);
    serde_json::to_string(&status).expect("JSON").len()
}

fn complete(desired: &Desired) -> (String, String) {
    let status = of_node(desired, &[]);
    let condition = status
        .conditions
        .into_iter()
        .find(|one| one.type_ == "Complete");
    let condition = condition.expect("a condition");
    (condition.status, condition.message)
}

#[test]
fn rules_for_which_there_is_no_room_are_refused_and_counted() {
    let all = desired(&cluster(crowd(1_000, 128)), Base::default());
    let programmed = all.outcomes().filter(|one| one.reason.is_programmed());
    assert_eq!(programmed.count(), 65_536);
    let last = all.outcomes().last().expect("a rule");
    assert_eq!(last.reason, Reason::LimitExceeded);
    assert!(last.message.contains("65536 rules"), "{}", last.message);
    let (status, message) = complete(&all);
    assert_eq!(status, "False", "{message}");
    assert!(bytes(&all) < 450 << 10, "{}", bytes(&all));
    let listed = of_node(&all, &[]);
    let listed: i32 = listed.redirects.iter().map(|one| one.unlisted).sum();
    assert!(
        message.starts_with(&format!("{listed} rules")),
        "{message}: {listed}"
    );
}

#[test]
fn a_thousand_objects_and_the_largest_one_are_listed_whole() {
    for (objects, rules) in [(1_000, 1), (1, 128), (40, 128)] {
        let all = desired(&cluster(crowd(objects, rules)), Base::default());
        let (status, message) = complete(&all);
        assert_eq!(status, "True", "{objects} objects: {message}");
        let listed = of_node(&all, &[]);
        let listed = listed.redirects.iter().map(|one| one.rules.len());
        assert_eq!(listed.sum::<usize>(), objects * rules);
    }
}
