//! Checks of real servers on the loopback interface.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use portredir_common::net::Port;

use super::*;
use crate::ruleset::health::{Check, Timing};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A server that treats each connection in a thread, and the count of connections.
fn server(
    host: IpAddr,
    serve: impl Fn(TcpStream) + Send + Sync + Copy + 'static,
) -> (Port, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((host, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || serve(stream));
        }
    });
    (Port::new(port), count)
}

/// Waits until the server has accepted a connection; then there was one.
fn wait_for_one(count: &AtomicUsize) {
    let until = Instant::now() + Duration::from_secs(20);
    while count.load(Ordering::SeqCst) == 0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

/// A server that reads a request, and writes these pieces with a pause after each.
fn http(pieces: &'static [&'static str], pause: Duration) -> Port {
    let serve = move |mut stream: TcpStream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        for piece in pieces {
            if stream.write_all(piece.as_bytes()).is_err() {
                return;
            }
            thread::sleep(pause);
        }
    };
    server(LOCALHOST, serve).0
}

/// A port on which nobody listens.
fn closed() -> Port {
    let listener = TcpListener::bind((LOCALHOST, 0)).expect("a port");
    Port::new(listener.local_addr().expect("an address").port())
}

fn probe(port: Port, check: Check) -> Probe {
    Probe {
        host: Some(LOCALHOST),
        port,
        check,
        timing: Timing {
            timeout: Duration::from_millis(400),
            ..Timing::default()
        },
    }
}

fn path(path: &str) -> Check {
    let path = path.to_owned();
    Check::Http { path }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

/// The result of a probe in words.
fn said(probe: Probe) -> String {
    let (_, result) = block_on(make(probe));
    let words = result.map(|answer| match answer {
        Answer::Some => "good".to_owned(),
        Answer::None => "silence".to_owned(),
    });
    words.unwrap_or_else(|why| why)
}

#[test]
fn udp_ports_that_answer_are_silent_and_are_closed() {
    let socket = UdpSocket::bind((LOCALHOST, 0)).expect("a port");
    let port = Port::new(socket.local_addr().expect("an address").port());
    assert_eq!(said(probe(port, Check::Udp)), "silence");
    let answering = socket.try_clone().expect("a socket");
    let server = thread::spawn(move || {
        // The first one is that of the probe before.
        for _ in 0..2 {
            let (len, peer) = answering.recv_from(&mut [0; 9]).expect("a datagram");
            assert_eq!(len, 0);
            let _ = answering.send_to(b"here", peer);
        }
    });
    assert_eq!(said(probe(port, Check::Udp)), "good");
    server.join().expect("two datagrams");
    drop(socket);
    assert_eq!(said(probe(port, Check::Udp)), "port unreachable");
    let own = |port| Probe {
        host: None,
        ..probe(port, Check::Udp)
    };
    assert_eq!(said(own(port)), "port unreachable");
    let v6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, port.get())).expect("a port");
    assert_eq!(said(own(port)), "silence");
    drop(v6);
}

#[test]
fn ports_that_accept_refuse_and_are_beyond_reach() {
    let (port, _) = server(LOCALHOST, drop);
    assert_eq!(said(probe(port, Check::Tcp)), "good");
    assert_eq!(said(probe(closed(), Check::Tcp)), "refused");
    // A backlog that is full answers nobody.
    let full = TcpListener::bind((LOCALHOST, 0)).expect("a port");
    let addr = full.local_addr().expect("an address");
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).expect("a backlog"))
        .expect("a short backlog");
    let _held = [(); 2].map(|()| TcpStream::connect_timeout(&addr, Duration::from_millis(200)));
    let silent = probe(Port::new(addr.port()), Check::Tcp);
    assert_eq!(said(silent), "no answer in 400 ms");
}

#[test]
fn a_connection_ends_at_once_and_leaves_nothing() {
    use std::net::Shutdown;
    let (told, ends) = std::sync::mpsc::channel();
    let listener = TcpListener::bind((LOCALHOST, 0)).expect("a port");
    let port = Port::new(listener.local_addr().expect("an address").port());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let end = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        let _ = stream.shutdown(Shutdown::Both);
        told.send(end).expect("send");
    });
    assert_eq!(said(probe(port, Check::Tcp)), "good");
    let end = ends.recv().expect("an end");
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_port_of_this_host_may_listen_on_one_ip_version() {
    let (port, count) = server(IpAddr::V6(Ipv6Addr::LOCALHOST), drop);
    let own = |port| Probe {
        host: None,
        ..probe(port, Check::Tcp)
    };
    assert_eq!(said(own(port)), "good");
    wait_for_one(&count);
    let (port, _) = server(LOCALHOST, drop);
    assert_eq!(said(own(port)), "good");
    assert_eq!(said(own(closed())), "refused");
}

#[test]
fn answers_of_http_servers() {
    const NONE: Duration = Duration::ZERO;
    let cases = [
        (
            http(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], NONE),
            "good",
        ),
        (http(&["HTTP/1.0 204 No Content\r\n\r\n"], NONE), "good"),
        (
            http(&["HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"], NONE),
            "good",
        ),
        (
            http(&["HTTP/1.1 200 OK\r\n\r\nuntil", " the end"], NONE),
            "good",
        ),
        (
            http(&["HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"], NONE),
            "HTTP 404",
        ),
        (
            http(&["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"], NONE),
            "HTTP 503",
        ),
        (http(&["SSH-2.0-OpenSSH_9.2\r\n"], NONE), "no HTTP answer"),
        (http(&[], NONE), "closed without an answer"),
        (
            http(
                &["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "half"],
                NONE,
            ),
            "closed without an answer",
        ),
    ];
    for (port, expected) in cases {
        assert_eq!(said(probe(port, path("/health"))), expected);
    }
    assert_eq!(said(probe(closed(), path("/"))), "refused");
    let invalid = probe(cases_port(), path("no path"));
    assert_eq!(said(invalid), "the path is not valid");
}

fn cases_port() -> Port {
    http(&[], Duration::ZERO)
}

#[test]
fn slow_and_endless_answers_end_in_time() {
    let pause = Duration::from_millis(60);
    let bytes = &[
        "H", "T", "T", "P", "/", "1", ".", "1", " ", "2", "0", "0", " ",
    ];
    let slow = probe(http(bytes, pause), path("/"));
    assert_eq!(said(slow), "no answer in 400 ms");
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n";
    let hangs: &'static [&str] =
        Box::leak(Box::new([head, "and", "then", "no", "more", "", "", ""]));
    assert_eq!(
        said(probe(http(hangs, pause), path("/"))),
        "no answer in 400 ms"
    );
    // A body without an end is read up to a limit.
    let endless = |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    };
    let (port, _) = server(LOCALHOST, endless);
    assert_eq!(said(probe(port, path("/"))), "good");
}

#[test]
fn the_request_names_host_and_path() {
    let (told, requests) = std::sync::mpsc::channel();
    let listener = TcpListener::bind((LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).expect("a request");
        request.truncate(length);
        told.send(String::from_utf8(request).expect("text"))
            .expect("send");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .expect("write");
    });
    assert_eq!(said(probe(Port::new(port), path("/health?deep=1"))), "good");
    let request = requests.recv().expect("a request").to_lowercase();
    assert!(
        request.starts_with("get /health?deep=1 http/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("host: 127.0.0.1:{port}\r\n")),
        "{request}"
    );
    assert!(request.contains("connection: close\r\n"), "{request}");
}

/// A probe that comes quickly.
fn quick(port: Port) -> Probe {
    Probe {
        timing: Timing {
            every: Duration::from_millis(40),
            timeout: Duration::from_millis(40),
            rise: 2,
            fall: 3,
        },
        ..probe(port, Check::Tcp)
    }
}

fn watched(number: u16, probe: Probe) -> Watched {
    let is_up = true;
    Watched {
        number,
        probe,
        is_up,
    }
}

async fn next(checker: &mut Checker) -> Vec<(u16, Option<String>)> {
    let changes = tokio::time::timeout(Duration::from_secs(20), checker.changed());
    let changes = changes.await.expect("a change").into_iter();
    changes.map(|change| (change.number, change.why)).collect()
}

#[test]
fn the_checker_tells_when_a_server_goes_and_comes_back() {
    block_on(async {
        let listener = tokio::net::TcpListener::bind((LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let mut checker = Checker::start();
        checker.watch(vec![watched(7, quick(Port::new(addr.port())))]);
        let silence = tokio::time::timeout(Duration::from_millis(300), checker.changed());
        assert!(silence.await.is_err(), "the target stays up");
        drop(listener);
        let down = (7, Some("refused".to_owned()));
        assert_eq!(next(&mut checker).await, vec![down.clone()]);
        // Who believes otherwise is told again.
        checker.watch(vec![watched(7, quick(Port::new(addr.port())))]);
        assert_eq!(next(&mut checker).await, [down]);
        let listener = tokio::net::TcpListener::bind(addr).await.expect("the port");
        assert_eq!(next(&mut checker).await, [(7, None)]);
        drop(listener);
    });
}

#[test]
fn many_probes_wait_for_each_other_and_all_are_made() {
    // Servers of which none answers: each probe takes its seat for all of its time.
    let full = TcpListener::bind((LOCALHOST, 0)).expect("a port");
    let port = Port::new(full.local_addr().expect("an address").port());
    let hanging = |number: u16| {
        let path = format!("/{number}");
        let timing = Timing {
            every: Duration::from_secs(1),
            timeout: Duration::from_millis(100),
            rise: 1,
            fall: 1,
        };
        let check = Check::Http { path };
        watched(
            number,
            Probe {
                timing,
                ..probe(port, check)
            },
        )
    };
    block_on(async {
        let mut checker = Checker::start();
        let began = Instant::now();
        // The backlog of the listener has room for these.
        checker.watch((1..=100).map(hanging).collect());
        let mut down = std::collections::BTreeSet::new();
        while down.len() < 100 {
            down.extend(
                next(&mut checker)
                    .await
                    .into_iter()
                    .map(|(number, _)| number),
            );
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(200), "64 at a time: {took:?}");
    });
}

#[test]
fn targets_with_the_same_probe_are_asked_once() {
    let (port, count) = server(LOCALHOST, drop);
    let slow = Probe {
        timing: Timing::default(),
        ..probe(port, Check::Tcp)
    };
    block_on(async {
        let mut checker = Checker::start();
        let down = |number| Watched {
            is_up: false,
            ..watched(number, slow.clone())
        };
        checker.watch((1..=50).map(down).collect());
        let mut up = 0;
        while up < 50 {
            up += next(&mut checker).await.len();
        }
    });
    wait_for_one(&count);
}
