//! `/healthz` and `/readyz` over HTTP, for probes, and `/metrics`. Codes and first
//! lines of the first two are flanneld's.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use flannel_core::health::Subject;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::flag;
use crate::metrics::{Exporter, Format};
use crate::status::{Shared, State};

/// Connections at a time: a probe is short, and nobody may take all files.
const CONNECTIONS: usize = 32;
/// How long a client may take for a request's head, and how long a connection
/// may last.
const HEAD: Duration = Duration::from_secs(5);
const CONNECTION: Duration = Duration::from_secs(60);
const PLAIN: &str = "text/plain; charset=utf-8";
/// Pause after a connection could not be accepted, such as without free files.
const PAUSE: Duration = Duration::from_millis(200);

/// Where probes and scrapes are answered.
#[derive(Args, Clone, Debug)]
pub struct HealthzOptions {
    /// Address to serve /healthz, /readyz and /metrics on
    #[arg(long = "healthz-ip", value_name = "IP", default_value = "0.0.0.0")]
    pub host: String,
    /// TCP port to serve /healthz, /readyz and /metrics on; 0: do not
    #[arg(long = "healthz-port", value_name = "PORT", default_value_t = 0,
          allow_negative_numbers = true, value_parser = flag::port)]
    port: i32,
}

impl HealthzOptions {
    /// The port; `None`: there is no health server.
    pub fn port(&self) -> Option<u16> {
        u16::try_from(self.port).ok().filter(|port| *port != 0)
    }
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "health server: listen on {host} port {port}: {source}; see --healthz-ip and --healthz-port"
)]
pub struct HealthzError {
    host: String,
    port: u16,
    source: std::io::Error,
}

/// A health server; dropping this ends it.
#[derive(Debug)]
pub struct Healthz(AbortHandle);

impl Drop for Healthz {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Listens where the flags say, on an address or a name, and answers from `shared` and
/// `exporter` from then on. `None`: they say nowhere.
///
/// # Errors
/// The name cannot be resolved, or the address cannot be had.
pub async fn serve(
    options: &HealthzOptions,
    shared: Shared,
    exporter: Exporter,
) -> Result<Option<Healthz>, HealthzError> {
    let Some(port) = options.port() else { return Ok(None) };
    let host = options.host.as_str();
    let listener = TcpListener::bind((host, port)).await.map_err(|source| HealthzError {
        host: host.to_owned(),
        port,
        source,
    })?;
    tracing::info!(host, port, "health server started");
    let served = Served { shared, exporter: Arc::new(exporter) };
    let task = served.shared.clone().spawn("answers at /healthz", accept(listener, served));
    Ok(Some(Healthz(task.abort_handle())))
}

#[derive(Clone)]
struct Served {
    shared: Shared,
    exporter: Arc<Exporter>,
}

async fn accept(listener: TcpListener, served: Served) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = served.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(CONNECTION, converse(stream, served)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "health server unavailable");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, served: Served) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let served = served.clone();
        async move {
            let target = request.uri().path();
            Ok::<_, Infallible>(match target {
                "/metrics" => scrape(served.exporter, wanted(request.headers())).await,
                _ => {
                    let (code, text) = answer(target, &served.shared.lock());
                    response(code, PLAIN, text)
                }
            })
        }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = conversation.await {
        tracing::debug!(%error, "health server client failed");
    }
}

/// The format of a scrape that the client asks for.
fn wanted(headers: &HeaderMap) -> Format {
    let all = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    Format::wanted(&all.collect::<Vec<_>>().join(","))
}

/// Reads maps and `/proc`, and may wait for the data path: on a thread for that.
async fn scrape(exporter: Arc<Exporter>, format: Format) -> Response<Full<Bytes>> {
    match tokio::task::spawn_blocking(move || exporter.scrape(format)).await {
        Ok(text) => response(StatusCode::OK, format.content_type(), text),
        Err(error) => {
            tracing::warn!(%error, "scrape failed");
            response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "scrape failed\n".to_owned())
        }
    }
}

fn response(code: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The answer to a target, for any method.
///
/// A node that is ready stays ready with complaints, as its pods have a
/// network; the complaints follow the first line, one a line. Only what
/// [`State::is_ready`] names must be well.
fn answer(target: &str, state: &State) -> (StatusCode, String) {
    match target {
        "/healthz" => (StatusCode::OK, "flanneld is running".to_owned()),
        "/readyz" => {
            let (code, text) = if state.is_ready() {
                (StatusCode::OK, "flanneld is ready")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet")
            };
            let mut lines = vec![text.to_owned()];
            lines.extend(reasons(state));
            (code, lines.join("\n"))
        }
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    }
}

fn reasons(state: &State) -> Vec<String> {
    let line = |what: &str, reason: &str| format!("{what}: {reason}").replace(['\r', '\n'], " ");
    let mut lines: Vec<String> = state
        .complaints()
        .iter()
        .map(|complaint| line(&complaint.what, &complaint.reason))
        .collect();
    if let Some(reason) = &state.store.detail
        && state.health.reason(Subject::Store).is_none()
    {
        lines.insert(0, line("store", reason));
    }
    if let Some(reason) = &state.datapath.reason {
        lines.push(line("data path: kernel", reason));
    }
    lines
}

#[cfg(test)]
mod tests {
    use flannel_core::health::Found;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::bpf::VerifySource;
    use crate::metrics::MetricsOptions;
    use crate::status::SharedDatapath;

    #[test]
    fn the_words_are_flannelds() {
        let mut state = State::default();
        let is = |state: &State, target: &str| {
            let (code, text) = answer(target, state);
            (code.as_u16(), text)
        };
        assert_eq!(is(&state, "/healthz"), (200, "flanneld is running".to_owned()));
        assert_eq!(is(&state, "/readyz"), (503, "flanneld is not ready yet".to_owned()));
        state.ready = true;
        assert_eq!(is(&state, "/readyz"), (200, "flanneld is ready".to_owned()));
        assert_eq!(is(&state, "/healthz"), (200, "flanneld is running".to_owned()));
        assert_eq!(is(&state, "/metric").0, 404);
        assert_eq!(is(&state, "/healthz/").0, 404);
    }

    #[test]
    fn reasons_follow_the_first_line() {
        let mut state = State { ready: true, ..State::default() };
        state.datapath.reason = Some("bpf(BPF_PROG_LOAD): EPERM\nline 2".to_owned());
        state.report(Subject::Firewall, Found::not_well("nft: not found"));
        let (code, text) = answer("/readyz", &state);
        assert_eq!(code, StatusCode::OK);
        assert_eq!(
            text,
            "flanneld is ready\nfirewall: nft: not found\n\
             data path: kernel: bpf(BPF_PROG_LOAD): EPERM line 2"
        );
        state.report(Subject::SubnetFile, Found::not_well("no space left"));
        let (code, text) = answer("/readyz", &state);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.starts_with("flanneld is not ready yet\nfirewall: "), "{text}");
        for subject in [Subject::Device, Subject::UdpProxy] {
            let mut state = State { ready: true, ..State::default() };
            state.report(subject, Found::not_well("EADDRINUSE"));
            let (code, text) = answer("/readyz", &state);
            assert_eq!((code, state.is_ready()), (StatusCode::SERVICE_UNAVAILABLE, false));
            assert!(text.ends_with(&format!("{subject}: EADDRINUSE")), "{text}");
        }
        let waiting = "waiting for the network config: connection refused";
        let mut state = State::default();
        state.store.detail = Some(waiting.to_owned());
        let (code, text) = answer("/readyz", &state);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, format!("flanneld is not ready yet\nstore: {waiting}"));
    }

    fn exporter() -> Exporter {
        let options = MetricsOptions::default();
        let checks = VerifySource::default();
        Exporter::new(Shared::default(), SharedDatapath::default(), options, checks)
    }

    fn at(host: &str, port: u16) -> HealthzOptions {
        HealthzOptions { host: host.to_owned(), port: port.into() }
    }

    async fn ask(port: u16, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_stops_nobody() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let taken = serve(&at("127.0.0.1", port), Shared::default(), exporter()).await.unwrap_err();
        let taken = taken.to_string();
        assert!(taken.contains("--healthz-port") && taken.contains(&port.to_string()), "{taken}");
        drop(free);
        let shared = Shared::default();
        let nowhere = serve(&at("localhost", 0), shared.clone(), exporter()).await.unwrap();
        assert!(nowhere.is_none());
        let server = serve(&at("localhost", port), shared.clone(), exporter()).await.unwrap();
        let silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        for head in ["GET /healthz HTTP/1.1", "HEAD /healthz HTTP/1.0", "POST /healthz HTTP/1.1"] {
            let text = ask(port, &format!("{head}\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
            assert!(text.contains(" 200 OK\r\n"), "{head}: {text}");
        }
        let text = ask(port, "GET /readyz?x HTTP/1.0\r\n\r\n").await;
        assert!(
            text.contains(" 503 ") && text.ends_with("\r\n\r\nflanneld is not ready yet"),
            "{text}"
        );
        let text = ask(port, "GET /metrics HTTP/1.0\r\n\r\n").await;
        assert!(text.contains(" 200 OK\r\n") && !text.contains("# EOF"), "{text}");
        assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
        let accept = "Accept: application/openmetrics-text\r\nAccept: text/plain;q=0.5";
        let text = ask(port, &format!("GET /metrics HTTP/1.0\r\n{accept}\r\n\r\n")).await;
        assert!(text.contains(" 200 OK\r\n") && text.ends_with("# EOF\n"), "{text}");
        assert!(
            text.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{text}"
        );
        let text = ask(port, "what?\r\n\r\n").await;
        assert!(text.contains(" 400 "), "{text}");
        drop(silent);
        drop(server);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }
}
