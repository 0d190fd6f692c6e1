//! A cgroup of its own for what a test runs, so that hooks on it see nothing
//! else of this machine.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::foreign;
use crate::lab::namespace::{Namespace, stale};
use crate::lab::process::Process;
use crate::lab::python::python;
use crate::skip;

/// Attaches a program to the sockets of a cgroup, alone.
const OCCUPY: &str = r#"
program = insn(0xb7, imm=1) + insn(0x95) # return 1
code = ctypes.create_string_buffer(program, len(program))
licence = ctypes.create_string_buffer(b"GPL")
# BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS
program = bpf(5, "IIQQ", 13, len(program) // 8, pointer(code), pointer(licence))
bpf(8, "IIII", os.open(sys.argv[1], os.O_RDONLY), program, 3, 0)
"#;

/// Deleted when dropped; what runs in it has to be gone by then.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes a child of the root, or skips the test.
    pub fn new(name: &str) -> Self {
        let Some(root) = root() else {
            skip("needs a cgroup2 hierarchy")
        };
        let path = root.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Self(path),
            Err(error) => skip(format!("needs to make {}: {error}", path.display())),
        }
    }

    /// The directory, as `--cgroup` takes it.
    pub fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }

    /// Starts a program in the cgroup and in a namespace.
    pub fn start(&self, namespace: &Namespace, args: &[&str]) -> Process {
        // The sockets of a process belong to the cgroup that it was in when it
        // made them, so it enters before it becomes the program.
        const ENTER: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let mut all = vec!["sh", "-c", ENTER, self.path()];
        all.extend(args);
        namespace.start(&all)
    }

    /// Attaches a foreign program that allows no other program beside it.
    pub fn occupy(&self, namespace: &Namespace) {
        let script = [foreign::BPF, OCCUPY].concat();
        namespace.run(&[python(), "-c", &script, self.path()]);
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            crate::lab::process::note(&format!("remove {}: {error}", self.path()));
        }
    }
}

/// Where the hierarchy of version 2 is mounted.
fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // proc_pid_mountinfo(5): the fifth word is where, the first behind the dash
    // is the type.
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let path = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| path.into())
    })
}

/// Removes what a run left behind that was killed.
pub fn sweep() {
    let Some(root) = root() else { return };
    for name in stale(&root) {
        let _ = fs::remove_dir(Path::new(&root).join(name));
    }
}
