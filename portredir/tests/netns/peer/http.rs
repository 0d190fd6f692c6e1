//! An HTTP server that keeps one file, and curl, which sends the file and gets it
//! back.

use std::fs;
use std::net::SocketAddr;

use crate::lab::Dir;
use crate::lab::namespace::Namespace;
use crate::lab::process::Process;
use crate::lab::python::python;

/// A file that no two packets of are alike.
pub fn noise(dir: &Dir, len: usize) -> (String, Vec<u8>) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_ne_bytes());
    }
    bytes.truncate(len);
    let path = dir.0.join("noise");
    fs::write(&path, &bytes).expect("write a file");
    (path.to_str().expect("text").to_owned(), bytes)
}

/// Sends a file to an HTTP server.
pub fn put(from: &Namespace, file: &str, to: SocketAddr) {
    let url = format!("http://{to}/");
    curl(from, &["--upload-file", file, &url]);
}

/// Gets the file back.
pub fn get(from: &Namespace, dir: &Dir, to: SocketAddr) -> Vec<u8> {
    let path = dir.0.join("answer");
    let url = format!("http://{to}/");
    curl(from, &["--output", path.to_str().expect("text"), &url]);
    fs::read(path).expect("read the answer")
}

fn curl(from: &Namespace, args: &[&str]) {
    let mut all = vec!["curl", "-qsSfg", "--noproxy", "*", "--connect-timeout", "5"];
    all.extend(args);
    from.run(&all);
}

/// Keeps what is PUT, and gives it back, for IPv4 and IPv6.
const HTTP: &str = r#"
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept = b""
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_PUT(self):
        Handler.kept = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"")
    def do_GET(self):
        self.answer(Handler.kept)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "lab", self.server_address[1]
server = Server(("::", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"#;

/// An HTTP server.
pub fn http_server(namespace: &Namespace, port: u16) -> Process {
    let mut server = namespace.start(&[python(), "-c", HTTP, &port.to_string()]);
    server.wait_for_words("ready");
    server
}
