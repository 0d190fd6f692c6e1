//! The answers to probes and to Prometheus, on one port: `/livez`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::health::{Health, Numbers};
use crate::controller::status;
use crate::observe::metrics;

/// The most connections at a time; more wait in the backlog of the kernel.
const SEATS: usize = 8;

/// The longest time of a connection.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Begins to listen. An older agent may listen on the same port until it ends.
///
/// # Errors
///
/// The address is taken, or is none of this host.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(addr)?;
    socket.listen(64)
}

/// Answers for ever.
pub async fn serve(listener: TcpListener, health: Health) {
    const RETRY: Duration = Duration::from_millis(100);
    let seats = Arc::new(Semaphore::new(SEATS));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let health = health.clone();
                tokio::spawn(async move {
                    // A client that is too slow is left.
                    let _ = tokio::time::timeout(TIMEOUT, answer(stream, health)).await;
                    drop(seat);
                });
            }
            Err(error) => {
                log::debug!("connection of a probe: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, health: Health) {
    let service = service_fn(|request: Request<Incoming>| {
        let page = page(request.method(), request.uri().path(), &health);
        async move { Ok::<_, Infallible>(page) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        log::debug!("connection of a probe: {error}");
    }
}

fn page(method: &Method, path: &str, health: &Health) -> Response<Full<Bytes>> {
    if method != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
    }
    match path {
        "/livez" if health.is_live() => plain(StatusCode::OK, "ok\n"),
        "/livez" => plain(StatusCode::SERVICE_UNAVAILABLE, "the loop is stuck\n"),
        "/readyz" if health.is_ready() => plain(StatusCode::OK, "ok\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, &unready(health)),
        "/metrics" => metrics_page(health),
        _ => plain(
            StatusCode::NOT_FOUND,
            "not found; there are /livez, /readyz and /metrics\n",
        ),
    }
}

/// The reason why the node is not ready.
fn unready(health: &Health) -> String {
    match health.silence() {
        Some(silence) => format!(
            "the API server has not answered for {} s; the last rules stay in force\n",
            silence.as_secs()
        ),
        None => "no rules are in force yet\n".to_owned(),
    }
}

fn metrics_page(health: &Health) -> Response<Full<Bytes>> {
    // Without an answer the text says that nothing runs.
    let text = status::metrics(status::read().ok());
    let text = text + &own(&health.numbers());
    respond(StatusCode::OK, metrics::CONTENT_TYPE, text)
}

/// The metrics of the agent itself.
fn own(numbers: &Numbers) -> String {
    let mut registry = Registry::with_prefix("portredir_agent");
    let gauge = |value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        gauge
    };
    let counter = |value| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        counter
    };
    let rules = Family::<Vec<(String, String)>, Gauge>::default();
    for (reason, count) in &numbers.reasons {
        let labels = vec![("reason".to_owned(), reason.clone())];
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        rules.get_or_create(&labels).set(count);
    }
    let ready = gauge(numbers.is_ready.into());
    let degraded = gauge(numbers.is_degraded.into());
    registry.register(
        "ready",
        "Whether rules are in force and not stale: 1, or 0.",
        ready,
    );
    registry.register(
        "degraded",
        "Whether a task of the agent fails: 1, or 0.",
        degraded,
    );
    registry.register(
        "rules",
        "Rules of the PortRedirects that select this node.",
        rules,
    );
    let passes = counter(numbers.passes);
    registry.register("passes", "Passes over the whole state.", passes);
    let help = "Passes whose rules could not be applied.";
    registry.register("failed_passes", help, counter(numbers.failed_passes));
    let help = "Writes of the status of the node.";
    registry.register("status_writes", help, counter(numbers.status_writes));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("a string takes any text");
    text
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text.to_owned())
}

fn respond(status: StatusCode, kind: &str, text: String) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .body(Full::new(text.into()))
        .expect("a status and one header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str, health: &Health) -> u16 {
        page(&Method::GET, path, health).status().as_u16()
    }

    #[test]
    fn readiness_follows_the_rules_and_liveness_does_not() {
        let health = Health::new(Duration::from_secs(600));
        assert_eq!(status("/livez", &health), 200);
        assert_eq!(status("/readyz", &health), 503);
        health.programmed();
        assert_eq!(status("/readyz", &health), 200);
        assert_eq!(status("/", &health), 404);
        let post = page(&Method::POST, "/readyz", &health);
        assert_eq!(post.status().as_u16(), 405);
        let stale = Health::new(Duration::ZERO);
        stale.programmed();
        assert_eq!(status("/readyz", &stale), 503);
        assert!(unready(&stale).contains("the last rules stay in force"));
    }

    #[test]
    fn each_reason_is_a_series() {
        let reasons = [("Programmed".to_owned(), 2), ("Conflicted".to_owned(), 1)];
        let text = own(&Numbers {
            passes: 3,
            is_ready: true,
            reasons: reasons.into(),
            ..Numbers::default()
        });
        assert!(text.contains("portredir_agent_ready 1\n"));
        assert!(text.contains("portredir_agent_passes_total 3\n"));
        assert!(text.contains("portredir_agent_rules{reason=\"Conflicted\"} 1\n"));
    }
}
