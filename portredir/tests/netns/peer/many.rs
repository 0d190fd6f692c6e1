//! HTTP servers and many clients of them at once.

use std::fs;
use std::net::SocketAddr;

use crate::lab::Lab;
use crate::lab::namespace::Namespace;
use crate::lab::process::Process;
use crate::lab::python::python;

/// Answers every request with as many bytes; `/slow` in parts, over some time.
const SERVER: &str = r#"
import http.server, socket, sys, time
body = bytes(i * 31 % 251 for i in range(int(sys.argv[2])))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        parts = 8 if self.path == "/slow" else 1
        size = len(body) // parts
        for i in range(parts):
            self.wfile.write(body[i * size:(i + 1) * size if i + 1 < parts else None])
            if parts > 1:
                time.sleep(0.05)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "lab", self.server_address[1]
server = Server(("::", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"#;

/// An HTTP server that answers with so many bytes, one connection each.
pub fn sized_http_server(host: &Namespace, port: u16, body: usize) -> Process {
    let (port, body) = (port.to_string(), body.to_string());
    let mut server = host.start(&[python(), "-c", SERVER, &port, &body]);
    server.wait_for_words("ready");
    server
}

/// Requests by so many connections at once, until there is a file `stop`; a line
/// for each request, and curl's exit code after some hundred.
const MANY: &str = r#"
while [ ! -e "$1/stop" ]; do
    curl -qsSf --noproxy '*' --max-time 20 --parallel --parallel-immediate --parallel-max "$2" \
        --output /dev/null --write-out '%{http_code} %{size_download}\n' "$3/[1-600]"
    echo "exit $?"
done
"#;

/// Many clients of a server.
pub struct HttpClients<'a> {
    lab: &'a Lab,
    process: Process,
    body: usize,
}

impl<'a> HttpClients<'a> {
    /// Starts them.
    pub fn start(lab: &'a Lab, connections: usize, to: SocketAddr, body: usize) -> Self {
        let dir = lab.dir.0.to_str().expect("text");
        let (connections, url) = (connections.to_string(), format!("http://{to}"));
        let args = ["sh", "-c", MANY, "sh", dir, &connections, &url];
        Self {
            lab,
            process: lab.client.start(&args),
            body,
        }
    }

    /// How many requests were answered; all of them must have been.
    pub fn answers(&self) -> usize {
        let out = self.process.out();
        let (whole, _) = out.rsplit_once('\n').unwrap_or_default();
        let good = format!("200 {}", self.body);
        let bad = whole
            .lines()
            .find(|line| *line != good && *line != "exit 0");
        assert_eq!(bad, None, "{}", self.process.err());
        whole.lines().filter(|line| **line == good).count()
    }

    /// Lets them end, and counts the answers.
    pub fn end(mut self) -> usize {
        fs::write(self.lab.dir.0.join("stop"), "").expect("write a file");
        self.process.wait();
        self.answers()
    }
}
