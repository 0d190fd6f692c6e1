//! The floors of each crate: a file imports from the floors below its own.

use super::imports::File;

/// The floors of a crate, from the ground up. The rooms of one floor do not
/// import each other.
pub struct House {
    /// The folder of the crate.
    pub folder: &'static str,
    pub floors: &'static [&'static [&'static str]],
}

/// All houses with floors. In xtask only circles are forbidden.
///
/// A room is a module at the root of its crate, with all that is below it.
pub const HOUSES: [House; 3] = [
    House {
        folder: "portredir-common",
        floors: &[
            &["trafficgen"],
            &["net", "verdict"],
            &["packed"],
            &["flow"],
            &["map", "wire"],
            &["kernel"],
            &["datapath"],
            &[ROOT],
        ],
    },
    House {
        folder: "portredir-ebpf",
        floors: &[
            &["verifier", "context", "globals"],
            &["maps", "frame"],
            &["kernel"],
            &["program"],
            &[ROOT],
        ],
    },
    House {
        folder: "portredir",
        floors: &[
            &["exit", "rule", "sys"],
            &["ruleset", "host"],
            &["config", "import"],
            &["plan", "cli"],
            &["state"],
            &["loader"],
            &["observe", "bench"],
            &["ipc"],
            &["controller"],
            &["command", "agent"],
            &[ROOT],
        ],
    },
];

/// The room of the file that a crate's modules hang on, and of the program's
/// `main.rs`.
pub const ROOT: &str = "main";

/// The room that only the root enters, whatever its floor.
pub const WINGS: [&str; 1] = ["bench"];

/// The crates that a crate may import. `portredir` is its own library, seen by
/// `main.rs`.
pub const CRATES_BELOW: [(&str, &[&str]); 4] = [
    ("portredir-common", &[]),
    ("portredir-ebpf", &["portredir-common"]),
    ("portredir", &["portredir-common"]),
    ("xtask", &[]),
];

/// Something that only some modules may do.
pub struct Privilege {
    /// The name in messages and in the list of exceptions.
    pub name: &'static str,
    /// Where it is allowed: `crate`, or `crate::module` with all below it.
    pub holders: &'static [&'static str],
    /// Advice for those without the privilege.
    pub advice: &'static str,
}

pub const AYA: Privilege = Privilege {
    name: "aya",
    holders: &[
        "portredir-common::map",
        "portredir::loader",
        "portredir::sys",
        "portredir::host::features",
        "portredir::host::preflight",
        "portredir::state::store",
        "portredir::controller::log",
        "portredir::bench",
    ],
    advice: "Let `loader` do what needs aya, and take its plain result",
};

pub const TOKIO: Privilege = Privilege {
    name: "tokio",
    holders: &[
        "portredir::sys",
        "portredir::host",
        "portredir::cli",
        "portredir::state",
        "portredir::loader",
        "portredir::observe",
        "portredir::bench",
        "portredir::ipc",
        "portredir::controller",
        "portredir::command",
        "portredir::agent",
        "portredir::main",
    ],
    advice: "Modules that only calculate wait for nothing: wait for events in `controller`",
};

pub const ANYHOW: Privilege = Privilege {
    name: "anyhow",
    holders: &[
        "portredir::main",
        "portredir::command",
        "portredir::bench",
        "xtask",
    ],
    advice: "Return an error enum of the area, derived with thiserror",
};

pub const PRINT: Privilege = Privilege {
    name: "print",
    holders: &[
        "portredir::main",
        "portredir::command",
        "portredir::bench",
        "xtask",
    ],
    advice: "Return a value, an `Event` or an error, and print it in `command`",
};

pub const UNSAFE: Privilege = Privilege {
    name: "unsafe",
    holders: &["portredir-common::map", "portredir::sys", "portredir-ebpf"],
    advice: "Put a safe function around the system call into `sys`",
};

/// The privilege that an external crate needs.
pub fn privilege_of(external: &str) -> Option<&'static Privilege> {
    match external {
        "aya" | "aya_obj" => Some(&AYA),
        "tokio" => Some(&TOKIO),
        "anyhow" => Some(&ANYHOW),
        _ => None,
    }
}

impl Privilege {
    /// Whether a file may do this.
    pub fn is_held_by(&self, file: &File) -> bool {
        let place = std::iter::once(file.of.folder);
        let module = file.module.iter().map(String::as_str);
        let place: Vec<_> = if file.module.is_empty() {
            place.chain([ROOT]).collect()
        } else {
            place.chain(module).collect()
        };
        self.holders.iter().any(|holder| {
            let holder: Vec<_> = holder.split("::").collect();
            place.starts_with(&holder)
        })
    }
}

/// The house of a file.
pub fn house(file: &File) -> Option<&'static House> {
    HOUSES.iter().find(|house| house.folder == file.of.folder)
}

/// Whether a file is in a room of its house. A crate without a house asks for none.
pub fn has_floor(file: &File) -> bool {
    house(file).is_none_or(|house| house.floor(room(file)).is_some())
}

/// The room of a file.
pub fn room(file: &File) -> &str {
    file.module.first().map_or(ROOT, String::as_str)
}

impl House {
    /// The number of a room's floor, from 0 at the ground.
    pub fn floor(&self, room: &str) -> Option<usize> {
        self.floors.iter().position(|floor| floor.contains(&room))
    }
}
