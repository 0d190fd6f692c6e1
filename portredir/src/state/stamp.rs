//! The time of a change, and the process that made it.

use std::fmt;

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};

use crate::sys::caller;

/// The time of a change, and the process that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The time.
    pub time: Timestamp,
    /// The ID of the process.
    pub pid: u32,
    /// The ID of the user of the process.
    pub uid: u32,
    /// The name of the user of the process.
    pub user: Option<String>,
    /// The name of the user who logged in, where that is another one: who used sudo.
    pub login: Option<String>,
}

impl Stamp {
    /// A change that this process makes now.
    #[must_use]
    pub fn now() -> Self {
        let uid = caller::uid();
        let user = caller::name(uid);
        let login = caller::login_uid().filter(|login| *login != uid);
        let now = Timestamp::now();
        Self {
            time: now.round(Unit::Second).unwrap_or(now),
            pid: std::process::id(),
            uid,
            user,
            login: login.map(|uid| caller::name(uid).unwrap_or_else(|| uid.to_string())),
        }
    }

    /// The user, and the user who logged in, in words.
    #[must_use]
    pub fn who(&self) -> String {
        let Self { uid, .. } = self;
        let user = match &self.user {
            Some(user) => user.clone(),
            None => format!("user {uid}"),
        };
        match &self.login {
            Some(login) => format!("{user} (logged in as {login})"),
            None => user,
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, pid, .. } = self;
        write!(f, "{time} by {}, process {pid}", self.who())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_names_user_login_and_process() {
        let json =
            r#"{"time":"2026-11-28T09:19:27Z","pid":812,"uid":0,"user":"root","login":"alice"}"#;
        let mut stamp: Stamp = serde_json::from_str(json).expect("a stamp");
        assert_eq!(
            stamp.to_string(),
            "2026-11-28T09:19:27Z by root (logged in as alice), process 812"
        );
        assert_eq!(serde_json::to_string(&stamp).expect("JSON"), json);
        (stamp.user, stamp.login) = (None, None);
        assert_eq!(
            stamp.to_string(),
            "2026-11-28T09:19:27Z by user 0, process 812"
        );
        assert_eq!(Stamp::now().pid, std::process::id());
    }
}
