//! A server that tells each client which addresses and ports it saw, and a client
//! that reports the answer and where the answer came from.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use crate::lab::cgroup::Cgroup;
use crate::lab::namespace::Namespace;
use crate::lab::process::Process;
use crate::lab::python::python;
use crate::peer::conn::Proto;

/// UDP is answered from the address that was asked, as servers have to on hosts
/// with more than one; without `IP_PKTINFO` the kernel would take another.
const SERVER: &str = r#"
import json, select, socket, sys
name, port = sys.argv[1], int(sys.argv[2])
def listen(family, kind):
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        s.setsockopt(socket.IPPROTO_IP, 8, 1) # IP_PKTINFO
    s.bind(("", port))
    if kind == socket.SOCK_STREAM:
        s.listen()
    return s
def seen(local, peer):
    return json.dumps({"server": name, "local": local[:2], "peer": peer[:2]}).encode()
def tcp(s):
    conn, peer = s.accept()
    conn.settimeout(3)
    try:
        conn.recv(100)
        conn.send(seen(conn.getsockname(), peer))
        conn.recv(100) # the end
    except OSError:
        pass
    conn.close()
def udp(s):
    _, info, _, peer = s.recvmsg(100, 100)
    level, kind, data = info[0]
    if level == socket.IPPROTO_IP: # index, address to send from, dst of the header
        local, data = data[8:12], bytes(4) + data[8:12] + bytes(4)
    else: # dst of the header, index
        local = data[:16]
    local = socket.inet_ntop(s.family, local), s.getsockname()[1]
    s.sendmsg([seen(local, peer)], [(level, kind, data)], 0, peer)
families = socket.AF_INET, socket.AF_INET6
serve = {listen(f, socket.SOCK_STREAM): tcp for f in families}
serve |= {listen(f, socket.SOCK_DGRAM): udp for f in families}
print("ready", flush=True)
while True:
    for s in select.select(list(serve), [], [])[0]:
        try:
            serve[s](s)
        except OSError as error: # the client will miss its answer
            print(error, file=sys.stderr)
"#;

/// Asks once by TCP, or twice by UDP: by a socket that is connected, then by
/// one that is not.
const CLIENT: &str = r#"
import json, socket, sys
name, addr, port, own_port = sys.argv[1:]
kind = socket.SOCK_STREAM if name == "Tcp" else socket.SOCK_DGRAM
family, _, _, _, to = socket.getaddrinfo(addr, int(port), type=kind)[0]
src = None
def ask(is_connected):
    global src
    s = socket.socket(family, kind)
    s.settimeout(3)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if own_port != "0":
            s.bind(("", int(own_port)))
        if is_connected:
            s.connect(to)
            src = s.getsockname()[0]
            s.send(b"who am I?")
            said = s.recv(1000)
            replied_from = s.getpeername()
        else:
            # A refusal is told: IP_RECVERR, IPV6_RECVERR
            s.setsockopt(socket.IPPROTO_IP, 11, 1)
            if family == socket.AF_INET6:
                s.setsockopt(socket.IPPROTO_IPV6, 25, 1)
            s.sendto(b"who am I?", to)
            said, replied_from = s.recvfrom(1000)
        if name == "Tcp":
            s.shutdown(socket.SHUT_WR)
            s.recv(1) # the end
        own = src, s.getsockname()[1]
        return {"Ok": dict(json.loads(said), reply=replied_from[:2], client=own)}
    except ConnectionRefusedError:
        return {"Err": "refused"}
    except socket.timeout:
        return {"Err": "no answer"}
    except OSError as error:
        return {"Err": error.strerror}
ways = [True] if name == "Tcp" else [True, False]
print(json.dumps([ask(way) for way in ways]))
"#;

/// The two ends of one conversation, as each end saw them.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// The name of the server.
    pub server: String,
    /// The server's own end, as the server saw it.
    local: (IpAddr, u16),
    /// The client's end, as the server saw it.
    peer: (IpAddr, u16),
    /// Where the reply came from, as the client saw it.
    reply: (IpAddr, u16),
    /// The client's own end, as the client saw it.
    client: (IpAddr, u16),
}

impl Answer {
    /// The server's own end, as the server saw it.
    pub fn local(&self) -> SocketAddr {
        canonical(self.local)
    }

    /// The client's end, as the server saw it.
    pub fn peer(&self) -> SocketAddr {
        canonical(self.peer)
    }

    /// Where the reply came from, as the client saw it.
    pub fn reply(&self) -> SocketAddr {
        canonical(self.reply)
    }

    /// The client's own end, as the client saw it.
    pub fn client(&self) -> SocketAddr {
        canonical(self.client)
    }
}

/// IPv4 is written as such, also where an IPv6 socket speaks it.
fn canonical((addr, port): (IpAddr, u16)) -> SocketAddr {
    SocketAddr::new(addr.to_canonical(), port)
}

/// Serves TCP and UDP, IPv4 and IPv6, on all addresses.
pub fn whoami_server(namespace: &Namespace, cgroup: &Cgroup, name: &str, port: u16) -> Process {
    let port = port.to_string();
    let args = [python(), "-SEc", SERVER, name, &port];
    let mut server = cgroup.start(namespace, &args);
    server.wait_for_words("ready");
    server
}

/// Asks the server on port 80 of an address, from a port, or from any for 0; one answer for
/// each way to ask.
pub fn ask_server(
    namespace: &Namespace,
    cgroup: &Cgroup,
    proto: Proto,
    (addr, from_port): (&str, u16),
) -> Vec<Result<Answer, String>> {
    let (proto, from_port) = (format!("{proto:?}"), from_port.to_string());
    let args = [python(), "-SEc", CLIENT, &proto, addr, "80", &from_port];
    let mut client = cgroup.start(namespace, &args);
    let status = client.wait();
    assert!(status.success(), "the client: {status}");
    serde_json::from_str(&client.out()).expect("answers")
}
