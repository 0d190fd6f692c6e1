//! Metrics over HTTP: `GET /metrics`, and nothing else.
//!
//! Clients cannot hold up the redirect. A connection lasts for `TIMEOUT` at most, and at
//! most `SEATS` are open. The process that redirects reads the counters once for all
//! clients that wait, and then rests for longer than that took.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::client::{self, Caller, Reply};
use crate::observe::metrics;

/// The most connections at a time; more wait in the backlog of the kernel.
const SEATS: usize = 8;

/// The longest time of a connection.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The time after which to accept again after a failure.
const RETRY: Duration = Duration::from_millis(100);

/// The time between two readings of the counters, in multiples of the first.
const REST: u32 = 10;

/// The longest request head in bytes, which is the least that hyper allows.
const LONGEST: usize = 8192;

/// The path of the metrics.
const PATH: &str = "/metrics";

/// The metrics, or the reason why they cannot be read.
type Page = Result<Bytes, Bytes>;

/// The server of metrics, at the address that the settings name.
#[derive(Debug)]
pub struct Scrapes {
    caller: Caller,
    served: Option<Served>,
}

/// The tasks that serve at an address; they end with this.
#[derive(Debug)]
struct Served {
    addr: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Served {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Scrapes {
    /// Makes a server that serves nowhere yet, and asks by `caller`.
    #[must_use]
    pub const fn new(caller: Caller) -> Self {
        Self {
            caller,
            served: None,
        }
    }

    /// Serves at this address, or nowhere. Must be called inside a runtime.
    ///
    /// # Errors
    ///
    /// The address is taken, or is none of this host. Then nothing is served.
    pub fn serve_at(&mut self, addr: Option<SocketAddr>) -> io::Result<()> {
        if self.served.as_ref().map(|served| served.addr) == addr {
            return Ok(());
        }
        self.served = None;
        self.served = addr.map(|addr| self.start(addr)).transpose()?;
        Ok(())
    }

    fn start(&self, addr: SocketAddr) -> io::Result<Served> {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (asker, questions) = mpsc::channel(SEATS);
        let read = tokio::spawn(read(questions, self.caller.clone()));
        let accept = tokio::spawn(accept(listener, asker));
        Ok(Served {
            addr,
            tasks: [read, accept],
        })
    }
}

/// Checks that an address can be listened on.
///
/// # Errors
///
/// The address is taken, or is none of this host.
pub fn check(addr: SocketAddr) -> io::Result<()> {
    TcpListener::bind(addr).map(drop)
}

/// Reads the counters, once for all who ask at the time.
async fn read(mut questions: mpsc::Receiver<oneshot::Sender<Page>>, caller: Caller) {
    const LEAST: Duration = Duration::from_millis(50);
    while let Some(first) = questions.recv().await {
        let began = Instant::now();
        let mut waiting = vec![first];
        while let Ok(more) = questions.try_recv() {
            waiting.push(more);
        }
        let page = match caller.ask(client::Request::Metrics).await {
            Some(Reply::Metrics(text)) => Ok(text.into()),
            Some(Reply::Refused(why)) => Err(why.into()),
            _ => Err(Bytes::from_static(b"the process is ending")),
        };
        for question in waiting {
            // The client may be gone.
            let _ = question.send(page.clone());
        }
        let rest = (began.elapsed() * REST).clamp(LEAST, TIMEOUT / 2);
        tokio::time::sleep(rest).await;
    }
}

async fn accept(listener: tokio::net::TcpListener, asker: mpsc::Sender<oneshot::Sender<Page>>) {
    let seats = Arc::new(Semaphore::new(SEATS));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let asker = asker.clone();
                tokio::spawn(async move {
                    if tokio::time::timeout(TIMEOUT, serve(stream, asker))
                        .await
                        .is_err()
                    {
                        log::debug!("a client of the metrics was too slow");
                    }
                    drop(seat);
                });
            }
            Err(error) => {
                log::debug!("connection for metrics: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Answers one request.
async fn serve(stream: TcpStream, asker: mpsc::Sender<oneshot::Sender<Page>>) {
    let service = service_fn(|request: Request<Incoming>| {
        let asker = asker.clone();
        async move { Ok::<_, Infallible>(response(&request, asker).await) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(LONGEST)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        log::debug!("connection for metrics: {error}");
    }
}

async fn response(
    request: &Request<Incoming>,
    asker: mpsc::Sender<oneshot::Sender<Page>>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET || request.uri().path() != PATH {
        let text = Bytes::from_static(b"not found; the metrics are at GET /metrics\n");
        return page(StatusCode::NOT_FOUND, text);
    }
    let (question, answer) = oneshot::channel();
    let page_or_why = match asker.send(question).await {
        Ok(()) => answer.await.ok(),
        Err(_) => None,
    };
    match page_or_why {
        Some(Ok(text)) => page(StatusCode::OK, text),
        Some(Err(why)) => page(StatusCode::INTERNAL_SERVER_ERROR, why),
        None => page(StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
    }
}

fn page(status: StatusCode, text: Bytes) -> Response<Full<Bytes>> {
    let kind = if status == StatusCode::OK {
        metrics::CONTENT_TYPE
    } else {
        "text/plain; charset=utf-8"
    };
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .body(Full::new(text))
        .expect("a status and one header")
}

#[cfg(test)]
mod tests;
