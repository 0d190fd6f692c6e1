//! TCP servers and clients that use what the standard library does not offer:
//! MPTCP, Fast Open, IP options, and a server that forks.

use std::net::SocketAddr;

use crate::lab::namespace::Namespace;
use crate::lab::process::Process;
use crate::lab::python::python;

/// Clients and servers that Rust's library does not know of.
const SCRIPT: &str = r#"
import ctypes, os, signal, socket, sys
what, family, host, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
family = socket.AF_INET if family == "V4" else socket.AF_INET6
MPTCP = 262
def serve(listener):
    listener.listen(16)
    print("ready", flush=True)
    while True:
        conn, peer = listener.accept()
        conn.sendall(what.encode() + b" 0.0.0.0:%d 0.0.0.0:%d\n" % (conn.getsockname()[1], peer[1]))
        conn.sendall(conn.recv(1000))
        conn.close()
def listener(proto):
    s = socket.socket(family, socket.SOCK_STREAM, proto)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port))
    return s
def talk(s):
    print("peer", s.getpeername()[1])
    s.sendall(b"hello\n")
    heard = b""
    while not heard.endswith(b"hello\n"):
        more = s.recv(1000)
        assert more, heard
        heard += more
    print(heard.decode())
if what == "fast-open-server":
    s = listener(0)
    s.setsockopt(socket.IPPROTO_TCP, 23, 16) # TCP_FASTOPEN
    serve(s)
elif what == "mptcp-server":
    serve(listener(MPTCP))
elif what == "forking-server":
    s = listener(0)
    s.listen(16)
    # Who began to listen keeps nothing of it.
    if os.fork():
        s.close()
        signal.pause()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL) # PR_SET_PDEATHSIG
    serve(s)
elif what == "fast-open":
    signal.alarm(10) # with a timeout it would not wait
    for _ in range(3):
        s = socket.socket(family, socket.SOCK_STREAM)
        assert s.sendto(b"x", socket.MSG_FASTOPEN, (host, port)) == 1
        print("peer", s.getpeername()[1])
        while s.recv(1000):
            pass
        s.close()
elif what == "mptcp":
    s = socket.socket(family, socket.SOCK_STREAM, MPTCP)
    s.settimeout(5)
    s.connect((host, port))
    talk(s)
elif what == "options":
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(5)
    if family == socket.AF_INET:
        # Record route, RFC 791, 3.1.
        s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 39, 4]) + bytes(37))
    else:
        # Pad options, RFC 8200, 4.2.
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
    s.connect((host, port))
    talk(s)
"#;

/// Arguments that run a part of [`SCRIPT`].
pub fn command(what: &str, to: SocketAddr) -> Vec<String> {
    let family = if to.is_ipv4() { "V4" } else { "V6" };
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    [python(), "-c", SCRIPT, what, family, &host, &port]
        .map(str::to_owned)
        .to_vec()
}

/// Runs a client of [`SCRIPT`] to its end; what it printed.
pub fn run_client(at: &Namespace, what: &str, to: SocketAddr) -> String {
    let args = command(what, to);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    at.run(&args)
}

/// Starts a server of [`SCRIPT`].
pub fn start_server(at: &Namespace, what: &str, on: SocketAddr) -> Process {
    let args = command(what, on);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut server = at.start(&args);
    server.wait_for_words("ready");
    server
}
