//! The processes that hold sockets, by proc_pid_fd(5).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Process {
    /// The ID.
    pub pid: u32,
    /// The name, of 15 bytes at most.
    pub name: String,
}

/// One process for each socket, by the inode of the socket: the one with the lowest ID,
/// and process 1 only where no other holds the socket. Sockets of processes that this user
/// may not look into are left out.
#[must_use]
pub fn holders(mut sockets: HashSet<u32>) -> HashMap<u32, Process> {
    let mut found = HashMap::new();
    sockets.remove(&0);
    if sockets.is_empty() {
        return found;
    }
    let netns = fs::read_link("/proc/thread-self/ns/net").ok();
    let is_here = |pid: &u32| fs::read_link(proc(*pid, "ns/net")).ok() == netns;
    // Nearly always a process of this namespace holds the socket. Another one can have
    // come from here, or can have been given it.
    let (here, elsewhere): (Vec<_>, Vec<_>) = pids().into_iter().partition(is_here);
    for pid in here.into_iter().chain(elsewhere) {
        if sockets.is_empty() {
            break;
        }
        for inode in inodes(&proc(pid, "fd")) {
            if sockets.remove(&inode) {
                let name = fs::read_to_string(proc(pid, "comm")).unwrap_or_default();
                let name = name.trim_end().to_owned();
                found.insert(inode, Process { pid, name });
            }
        }
    }
    found
}

/// The inodes of the sockets of a process, as far as this user may know them; `None` when
/// there is no such process.
#[must_use]
pub fn sockets(pid: u32) -> Option<HashSet<u32>> {
    let descriptors = proc(pid, "fd");
    proc(pid, "comm")
        .exists()
        .then(|| inodes(&descriptors).collect())
}

/// The IDs of the BPF maps that a process holds, as far as this user may know them.
#[must_use]
pub fn bpf_maps(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(proc(pid, "fdinfo"));
    let entries = entries.into_iter().flatten().flatten();
    let id = |entry: fs::DirEntry| {
        let info = fs::read_to_string(entry.path()).ok()?;
        let id = info.lines().find_map(|line| line.strip_prefix("map_id:"))?;
        id.trim().parse().ok()
    };
    entries.filter_map(id).collect()
}

/// All processes, the first one last: it may hold sockets for others.
fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable_by_key(|&pid| (pid == 1, pid));
    pids
}

fn proc(pid: u32, file: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(file)
}

/// The inodes of the sockets among the descriptors of a process.
fn inodes(descriptors: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(descriptors).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        inode.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use portredir_common::net::{Port, Protocol};

    use super::*;
    use crate::sys::sock_diag;

    /// Needs no privileges for sockets of its own.
    #[test]
    fn the_holder_of_a_socket_is_found() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = Port::new(socket.local_addr().expect("an address").port());
        let servers = sock_diag::servers(Protocol::Udp).expect("sockets");
        let server = servers.iter().find(|server| server.port == port);
        let server = server.expect("the socket");
        assert!(server.addr.is_loopback() && server.device == 0);
        let holders = holders(HashSet::from([server.inode, 0]));
        assert_eq!(holders.len(), 1);
        assert_eq!(holders[&server.inode].pid, std::process::id());
        assert!(!holders[&server.inode].name.is_empty());
    }
}
