//! The server of the benchmark, which listens on the target port.
//!
//! A connection gets back what it sends, unless the first byte is [`UPLOAD`] or
//! [`DOWNLOAD`]. So do datagrams, unless they begin with the mark of the traffic
//! generator: a socket filter drops those in the kernel, and the namespace counts them as
//! `InErrors`.

use std::convert::Infallible;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _};
use std::thread;

use anyhow::Context as _;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use portredir_common::net::Port;
use portredir_common::trafficgen::MARK;

use crate::bench::traffic::{CHUNK_BYTES, receive, send};

/// The first byte of a connection that uploads: the server answers it with the same byte,
/// then each transfer from the client with one byte.
pub const UPLOAD: u8 = b'U';
/// The first byte of a connection that downloads: the server answers it with the same
/// byte, then each byte from the client with a transfer.
pub const DOWNLOAD: u8 = b'D';

/// The line that the server prints when it listens.
pub const READY: &str = "listening";

nix::setsockopt_impl!(
    AttachFilter,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    libc::sock_fprog,
    sockopt::SetStruct<libc::sock_fprog>
);

/// A socket option: a program of classic BPF that packets must pass.
#[derive(Clone, Copy, Debug)]
struct AttachFilter;

/// Serves TCP and UDP on all IPv4 addresses, forever.
///
/// # Errors
///
/// When the port is taken, or the kernel refuses.
pub fn serve(port: Port) -> anyhow::Result<Infallible> {
    let port = port.get();
    let to = (Ipv4Addr::UNSPECIFIED, port);
    let listener = TcpListener::bind(to).with_context(|| format!("listen on {port}/tcp"))?;
    listener.set_nonblocking(true)?;
    let datagrams = UdpSocket::bind(to).with_context(|| format!("listen on {port}/udp"))?;
    datagrams.set_nonblocking(true)?;
    drop_marked(&datagrams).context("attach a socket filter")?;
    let mut server = Server {
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?,
        connections: Vec::new(),
    };
    server.watch(&listener, LISTENER)?;
    server.watch(&datagrams, DATAGRAMS)?;
    eprintln!("{READY} on {port}, TCP and UDP");

    let mut buffer = vec![0; 1 << 16];
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = match server.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error).context("wait for clients"),
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => server.accept(&listener)?,
                DATAGRAMS => echo_datagrams(&datagrams, &mut buffer),
                fd => server.echo(fd, &mut buffer)?,
            }
        }
    }
}

// A number that is not the descriptor of a connection.
const LISTENER: u64 = u64::MAX;
const DATAGRAMS: u64 = u64::MAX - 1;

struct Server {
    epoll: Epoll,
    /// The connections by their descriptor.
    connections: Vec<Option<TcpStream>>,
}

impl Server {
    fn watch(&self, socket: impl AsFd, name: u64) -> anyhow::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, name);
        self.epoll.add(socket, event).context("watch a socket")
    }

    fn accept(&mut self, listener: &TcpListener) -> anyhow::Result<()> {
        while let Ok((connection, _)) = listener.accept() {
            let fd = usize::try_from(connection.as_raw_fd()).context("read a descriptor")?;
            self.watch(&connection, fd as u64)?;
            if self.connections.len() <= fd {
                self.connections.resize_with(fd + 1, || None);
            }
            self.connections[fd] = Some(connection);
        }
        Ok(())
    }

    fn echo(&mut self, fd: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        let slot = usize::try_from(fd).ok();
        let Some(slot) = slot.and_then(|slot| self.connections.get_mut(slot)) else {
            return Ok(());
        };
        let Some(connection) = slot.as_mut() else {
            return Ok(());
        };
        let received = match connection.read(buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(_) => 0,
        };
        match buffer[..received] {
            [] => *slot = None,
            [UPLOAD, ..] | [DOWNLOAD, ..] if received == 1 => {
                let is_upload = buffer[0] == UPLOAD;
                self.epoll.delete(&*connection).context("leave a socket")?;
                if let Some(connection) = slot.take() {
                    thread::spawn(move || transfer(connection, is_upload));
                }
            }
            _ => {
                if connection.write_all(&buffer[..received]).is_err() {
                    *slot = None;
                }
            }
        }
        Ok(())
    }
}

/// Transfers until the client closes.
fn transfer(mut connection: TcpStream, is_upload: bool) -> std::io::Result<()> {
    let mut chunk = Box::new([0; CHUNK_BYTES]);
    let mut byte = [if is_upload { UPLOAD } else { DOWNLOAD }];
    connection.set_nodelay(true)?;
    connection.write_all(&byte)?;
    loop {
        if is_upload {
            receive(&mut connection, &mut chunk)?;
            connection.write_all(&byte)?;
        } else {
            connection.read_exact(&mut byte)?;
            send(&mut connection, &chunk)?;
        }
    }
}

fn echo_datagrams(socket: &UdpSocket, buffer: &mut [u8]) {
    while let Ok((received, from)) = socket.recv_from(buffer) {
        // A client that is gone needs no answer.
        let _ = socket.send_to(&buffer[..received], from);
    }
}

fn drop_marked(socket: &UdpSocket) -> nix::Result<()> {
    // The filter sees the packet from its UDP header on.
    const FIRST_BYTE: u32 = 8;
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).expect("sixteen bits"),
        jt,
        jf,
        k,
    };
    let mut filter = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FIRST_BYTE),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            MARK.into(),
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    setsockopt(socket, AttachFilter, &program)
}
