//! Registers listening servers for engine `socket`.

use std::collections::HashMap;
use std::io;

use aya::maps::SockHash;
use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use portredir_common::flow::FlowKey;
use portredir_common::map::sockets::ListenerKey;
use portredir_common::net::{Addr, Port, Protocol};
use serde::{Deserialize, Serialize};

use super::error::{DatapathError, map_error};
use super::{Datapath, program};
use crate::ruleset::compile::Table;
use crate::sys::sock_diag::TcpSocket;

/// A server that could not be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unregistered {
    /// The port that the server listens on.
    pub port: u16,
    /// The kernel's `errno`.
    pub errno: i32,
}

impl Unregistered {
    /// The reason, in words.
    #[must_use]
    pub fn why(self) -> String {
        match self.errno {
            libc::EOPNOTSUPP => {
                "the server uses MPTCP, whose sockets this kernel does not accept in BPF maps"
                    .to_owned()
            }
            errno => io::Error::from_raw_os_error(errno).to_string(),
        }
    }
}

impl Datapath {
    /// Whether servers have to be registered.
    #[must_use]
    pub const fn needs_listeners(&self) -> bool {
        self.lookup.is_some()
    }

    /// Registers the listening sockets that are on a target port and are not registered
    /// yet, and returns those that the kernel refused.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`], [`DatapathError::Map`].
    pub fn register(
        &mut self,
        table: &Table,
        listening: &[TcpSocket],
    ) -> Result<Vec<Unregistered>, DatapathError> {
        let name = "LISTENERS";
        let mut registered = HashMap::<(Addr, Port), u8>::new();
        let map = self.map(name);
        let map = SockHash::<_, ListenerKey>::try_from(map).map_err(map_error(name))?;
        for key in map.keys() {
            // An entry that is removed meanwhile ends the walk; the next call sees the
            // rest.
            let Ok(key) = key else { break };
            *registered.entry((key.addr, key.port)).or_default() += 1;
        }
        let mut groups = HashMap::<(Addr, Port), Vec<TcpSocket>>::new();
        for socket in listening {
            if table.is_target(Protocol::Tcp, socket.key.local_port) {
                let place = (socket.key.local, socket.key.local_port);
                groups.entry(place).or_default().push(*socket);
            }
        }
        let mut refused = Vec::new();
        for (place, group) in groups {
            let registered = registered.get(&place).copied().unwrap_or_default();
            let slots = usize::from(ListenerKey::SLOTS - registered.min(ListenerKey::SLOTS));
            let missing = group.len().saturating_sub(registered.into()).min(slots);
            match self.register_group(&group, missing)? {
                Ok(()) => {}
                Err(errno) => refused.push(Unregistered {
                    port: place.1.get(),
                    errno,
                }),
            }
        }
        Ok(refused)
    }

    /// Registers `missing` of the sockets that listen in one place.
    fn register_group(
        &mut self,
        group: &[TcpSocket],
        mut missing: usize,
    ) -> Result<Result<(), i32>, DatapathError> {
        // The lookup chooses among a group by the client, so several clients are tried.
        // Sockets on different devices are found at once.
        const TRIES: usize = 16;
        let tries = group.iter().cycle().take(TRIES * group.len());
        for (client_port, socket) in (0..=u16::MAX).zip(tries) {
            if missing == 0 {
                break;
            }
            let mut socket = *socket;
            socket.key.client_port = Port::new(client_port);
            match self.scan(&socket)? {
                Ok(is_new) => missing -= usize::from(is_new),
                // A socket that closes, or one on a removed device, hides no other.
                Err(libc::ENOENT | libc::ENODEV) => {}
                Err(errno) => return Ok(Err(errno)),
            }
        }
        Ok(Ok(()))
    }

    /// Lets the kernel look up a listening socket and register it; returns whether it was
    /// not registered before.
    fn scan(&mut self, socket: &TcpSocket) -> Result<Result<bool, i32>, DatapathError> {
        // `ifindex` in `struct __sk_buff` of include/uapi/linux/bpf.h.
        const IFINDEX: usize = 40;
        let mut packet = [0; 14 + size_of::<FlowKey>()];
        packet[14..].copy_from_slice(&socket.key.to_bytes());
        let mut context = [0; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&socket.device.to_ne_bytes());
        let program: &mut SchedClassifier = self.program(program::SCAN)?;
        let options = TestRunOptions {
            data_in: Some(&packet),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = match program.test_run(options) {
            Ok(result) => result,
            // The device that the socket is bound to.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENODEV) =>
            {
                return Ok(Err(libc::ENODEV));
            }
            Err(source) => return Err(DatapathError::Scan(source)),
        };
        match result.return_value.cast_signed() {
            is_new @ (0 | 1) => Ok(Ok(is_new == 1)),
            errno => Ok(Err(-errno)),
        }
    }
}
