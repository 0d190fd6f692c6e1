//! The settings: the merged options and rules of the command line, the environment and
//! files.

use serde_json::{Map, Value};

use super::options::ALL;
pub use super::options::{Effect, Settings};

/// An option whose value differs between two settings.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangedOption {
    /// The name of the option, as in files.
    pub name: String,
    /// The effect of the change on attached programs.
    pub effect: Effect,
    /// The value afterwards.
    pub after: Value,
}

impl Settings {
    /// The options that differ from those of `before`, in the order of the list.
    #[must_use]
    pub fn changed_options(&self, before: &Self) -> Vec<ChangedOption> {
        let (before, mut after) = (before.options(), self.options());
        let changed = ALL.iter().filter_map(|&(field, effect)| {
            let name = field.replace('_', "-");
            let value = after.remove(&name)?;
            (before.get(&name) != Some(&value)).then_some(ChangedOption {
                name,
                effect,
                after: value,
            })
        });
        changed.collect()
    }

    /// The first option that differs from that of `before` and cannot change while
    /// programs are attached.
    #[must_use]
    pub fn first_attach_option(&self, before: &Self) -> Option<String> {
        let changed = self.changed_options(before).into_iter();
        let mut attach = changed.filter(|option| option.effect == Effect::Attach);
        attach.next().map(|option| option.name)
    }

    /// The values of all options, by the names in files.
    fn options(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(options)) => options,
            _ => unreachable!("settings are a JSON object"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_options_come_in_order_with_their_effect() {
        let before = Settings::default();
        let after = Settings {
            max_udp_flows: 2048,
            hide_target: true,
            cgroup: Some("/sys/fs/cgroup/a".into()),
            ..before.clone()
        };
        let changed = after.changed_options(&before);
        let changed: Vec<_> = changed
            .iter()
            .map(|option| (option.name.as_str(), option.effect))
            .collect();
        assert_eq!(
            changed,
            [
                ("hide-target", Effect::Live),
                ("cgroup", Effect::Attach),
                ("max-udp-flows", Effect::Attach),
            ]
        );
        assert_eq!(after.changed_options(&after), []);
    }

    /// The state that an older program pinned has these keys.
    #[test]
    fn settings_of_an_older_program_are_read() {
        let json = r#"{"iface":"eth0","engine":"tc-clsact","no-local":true,
            "allow-loopback-target":false,"cgroup":null,"hide-target":true,
            "if-listening":false,"max-tcp-flows":2048,"max-udp-flows":1024,
            "drain-timeout":2.5,"rules":["80:8080"]}"#;
        let settings: Settings = serde_json::from_str(json).expect("settings");
        let again = serde_json::to_value(&settings).expect("JSON");
        assert_eq!(again, serde_json::from_str::<Value>(json).expect("JSON"));
        let fewer: Settings = serde_json::from_str(r#"{"no-local":true}"#).expect("settings");
        assert!(fewer.no_local && fewer.rules.is_empty());
        serde_json::from_str::<Settings>(r#"{"later":1}"#).expect_err("an unknown key");
    }
}
