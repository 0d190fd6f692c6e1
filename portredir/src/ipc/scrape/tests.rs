//! The server alone, with a process that answers as the test wants.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use tokio::runtime::Handle;

use super::*;

/// A server on a free port of this host, whose process answers with the number of the
/// reading, and the count of readings.
struct Site {
    addr: SocketAddr,
    readings: Arc<AtomicU32>,
    runtime: Handle,
    scrapes: Scrapes,
}

fn site(answer: fn(u32) -> Reply) -> Site {
    let (caller, mut calls) = Caller::test();
    let readings = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&readings);
    let (handles, handle) = std::sync::mpsc::channel();
    // The process ends when the last caller is gone.
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        handles.send(runtime.handle().clone()).expect("send");
        runtime.block_on(async move {
            while let Some(call) = calls.recv().await {
                call.answer(answer(count.fetch_add(1, Ordering::SeqCst) + 1));
            }
        });
    });
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = free.local_addr().expect("an address");
    drop(free);
    let mut site = Site {
        addr,
        readings,
        runtime: handle.recv().expect("a runtime"),
        scrapes: Scrapes::new(caller),
    };
    site.serve_at(Some(addr)).expect("serve");
    site
}

fn text(number: u32) -> Reply {
    Reply::Metrics(format!("portredir_rules {number}\n"))
}

impl Site {
    fn serve_at(&mut self, addr: Option<SocketAddr>) -> io::Result<()> {
        let _guard = self.runtime.enter();
        self.scrapes.serve_at(addr)
    }

    fn ask(&self, head: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).expect("connect");
        write!(stream, "{head} HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    }
}

#[test]
fn only_get_metrics_is_answered() {
    let site = site(text);
    let answer = site.ask("GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nportredir_rules 1\n"), "{answer}");
    let again = site.ask("GET /metrics?again");
    assert!(again.ends_with("portredir_rules 2\n"), "read anew: {again}");
    for head in [
        "GET /",
        "GET /metrics/",
        "POST /metrics",
        "HEAD /metrics",
        "GET /status",
    ] {
        let answer = site.ask(head);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{head}: {answer}");
    }
    assert_eq!(site.readings.load(Ordering::SeqCst), 2);
}

#[test]
fn a_failure_is_said() {
    let site = site(|_| Reply::Refused("map COUNTERS: no such file".to_owned()));
    let answer = site.ask("GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(answer.ends_with("map COUNTERS: no such file"), "{answer}");
}

#[test]
fn a_long_head_is_refused() {
    let site = site(text);
    let mut stream = TcpStream::connect(site.addr).expect("connect");
    let long = format!(
        "GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    // The server may close before it has read all of it.
    let _ = stream.write_all(long.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(!answer.contains("200 OK"), "{answer}");
    assert_eq!(site.readings.load(Ordering::SeqCst), 0);
}

/// Clients that come at once are answered from few readings.
#[test]
fn many_clients_cost_few_readings() {
    let site = site(text);
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| assert!(site.ask("GET /metrics").contains("200 OK")));
        }
    });
    let readings = site.readings.load(Ordering::SeqCst);
    assert!((1..=20).contains(&readings), "{readings} for 40 clients");
}

/// Clients that send nothing occupy every seat, and lose them after a time.
#[test]
fn silent_clients_lose_their_seats() {
    let site = site(text);
    let silent: Vec<_> = (0..SEATS)
        .map(|_| TcpStream::connect(site.addr).expect("connect"))
        .collect();
    let began = Instant::now();
    assert!(site.ask("GET /metrics").contains("200 OK"));
    assert!(began.elapsed() >= TIMEOUT / 2, "the seats were taken");
    assert!(began.elapsed() < TIMEOUT * 2);
    drop(silent);
}

#[test]
fn the_address_follows_the_settings() {
    let mut site = site(text);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken_addr = taken.local_addr().expect("an address");
    assert_eq!(
        check(taken_addr).map_err(|error| error.kind()),
        Err(io::ErrorKind::AddrInUse)
    );
    let error = site.serve_at(Some(taken_addr)).expect_err("taken");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    drop(taken);
    site.serve_at(Some(taken_addr)).expect("free now");
    let old = std::mem::replace(&mut site.addr, taken_addr);
    assert!(site.ask("GET /metrics").contains("200 OK"));
    TcpStream::connect(old).expect_err("nobody listens on the old port");
    site.serve_at(None).expect("nothing");
    let gone = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(10));
        TcpStream::connect(taken_addr).is_err()
    });
    assert!(gone, "the server ends");
}
