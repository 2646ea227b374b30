//! Endpoints: HTTP, TLS, basic auth, timeouts, and the next endpoint when one
//! fails.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderValue};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Method, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::watch;
use tokio::time::timeout;
use tower_service::Service;

use super::failure::{Failure, Refusal, judge};
use crate::source::SourceError;
use crate::source::dial::{Address, Dialer, Stream, words};
use crate::source::hint::hint;
use crate::source::identity::ClusterIdentity;
use crate::source::login::Login;
use crate::source::options::{EtcdOptions, bad};

/// Most time that one call at one endpoint may take, connecting included.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes that an answer may have; 350 bytes are one lease.
const ANSWER_LIMIT: usize = 64 << 20;

/// What a key has as it is in a URL.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_');

type Http = Client<Connector, Full<Bytes>>;

/// The endpoints of one store. Calls go to the one that answered last.
pub(super) struct Endpoints {
    urls: Vec<String>,
    connector: Connector,
    /// The client with its idle connections.
    http: Mutex<Http>,
    login: Option<Login>,
    current: AtomicUsize,
    identity: ClusterIdentity,
    /// Counts how often all connections were left.
    left: watch::Sender<u64>,
}

/// Makes the client's connections.
#[derive(Clone)]
struct Connector(Dialer);

/// A connection as the client wants it.
struct Io(TokioIo<Stream>);

impl Connection for Io {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Service<Uri> for Connector {
    type Response = Io;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Io, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.0.clone();
        Box::pin(async move {
            let address = Address::of(&uri).ok_or_else(|| std::io::Error::other("no host"))?;
            let stream = dialer.dial(&address).await.map_err(std::io::Error::other)?;
            Ok(Io(TokioIo::new(stream)))
        })
    }
}

impl Connector {
    fn client(&self) -> Http {
        Client::builder(TokioExecutor::new()).build(self.clone())
    }
}

/// A call of the API.
pub(super) struct Request<'a> {
    /// What it is called in messages.
    pub(super) call: &'static str,
    pub(super) method: Method,
    /// The whole key.
    pub(super) key: &'a str,
    /// The part of the URL behind `?`.
    pub(super) query: String,
    /// Form fields of a write.
    pub(super) form: Option<String>,
}

/// What etcd answered.
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// `X-Etcd-Index`: all changes up to it are in the answer.
    pub(super) index: i64,
}

/// The key is not as the call wanted it, or an answer.
pub(super) type Answered = Result<Answer, Refusal>;

impl Endpoints {
    /// Reads the files that `options` name; connects to nothing yet.
    pub(super) async fn new(options: &EtcdOptions) -> Result<Self, SourceError> {
        let dialer = Dialer::new(options, None);
        let files = dialer.check().await?;
        let urls = options.urls(files.as_ref())?;
        for url in &urls {
            Address::parse(url)?;
        }
        let login = Login::of(options);
        authorization(login.as_ref()).await?;
        let connector = Connector(dialer);
        Ok(Self {
            urls,
            http: Mutex::new(connector.client()),
            connector,
            login,
            current: AtomicUsize::new(0),
            identity: ClusterIdentity::default(),
            left: watch::Sender::new(0),
        })
    }

    /// All endpoints, for messages.
    pub(super) fn names(&self) -> String {
        self.urls.join(", ")
    }

    /// The endpoint that answered last.
    pub(super) fn current(&self) -> &str {
        &self.urls[self.current.load(Ordering::Relaxed)]
    }

    /// Leaves the current endpoint to the others, after it failed.
    pub(super) fn leave(&self) {
        let current = self.current.load(Ordering::Relaxed);
        self.current.store((current + 1) % self.urls.len(), Ordering::Relaxed);
    }

    /// Which cluster it is.
    pub(super) fn identity(&self) -> &ClusterIdentity {
        &self.identity
    }

    /// Leaves all connections if one began at an address that has gone.
    pub(super) fn addresses_changed(&self, is_here: &dyn Fn(IpAddr) -> bool) {
        if !self.connector.0.has_lost(is_here) {
            return;
        }
        *self.http.lock().unwrap_or_else(PoisonError::into_inner) = self.connector.client();
        self.left.send_modify(|times| *times += 1);
    }

    /// Tells when all connections are to be left.
    pub(super) fn left(&self) -> watch::Receiver<u64> {
        self.left.subscribe()
    }

    /// Makes a call at the current endpoint, then at each other until one
    /// answers. A call that failed may have had its effect all the same.
    pub(super) async fn call(&self, request: &Request<'_>) -> Result<Answered, SourceError> {
        let first = self.current.load(Ordering::Relaxed);
        // In the order of the endpoints: the same trouble has the same words.
        let mut causes = BTreeMap::new();
        let mut refused = false;
        for n in 0..self.urls.len() {
            let at = (first + n) % self.urls.len();
            let url = &self.urls[at];
            let failure = match self.call_at(url, request).await {
                Ok(outcome) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(outcome);
                }
                Err(failure) => failure,
            };
            causes.insert(at, format!("{url}: {}", failure.cause));
            refused = failure.everywhere;
            if refused {
                break;
            }
        }
        let (call, key) = (request.call, request.key.to_owned());
        let cause = causes.into_values().collect::<Vec<_>>().join("; ");
        let hint = hint(&cause);
        Err(SourceError::Call { call, key, cause, hint, refused })
    }

    async fn call_at(&self, url: &str, request: &Request<'_>) -> Result<Answered, Failure> {
        let mut left = self.left();
        loop {
            let once = async {
                if request.method != Method::GET {
                    self.probe(url, request.key).await?;
                }
                read(self.send(url, request).await?).await
            };
            tokio::select! {
                answer = timeout(CALL_TIMEOUT, once) => {
                    return answer.unwrap_or_else(|_| Err(Failure::no_answer(CALL_TIMEOUT)));
                }
                Ok(()) = left.changed() => {}
            }
        }
    }

    /// Asks which cluster an endpoint is of, before anything is written there.
    async fn probe(&self, url: &str, key: &str) -> Result<(), Failure> {
        let key = utf8_percent_encode(key, KEY);
        let answer = self.request(&format!("{url}/v2/keys{key}"), Method::GET, None).await?;
        self.check_cluster(url, &answer)?;
        // Read to its end, so that the connection can be used again.
        let _ = read(answer).await;
        Ok(())
    }

    fn check_cluster(&self, url: &str, answer: &Response<Incoming>) -> Result<(), Failure> {
        let id = answer.headers().get("x-etcd-cluster-id").and_then(|id| id.to_str().ok());
        match id.and_then(|id| u64::from_str_radix(id, 16).ok()) {
            Some(cluster) => self.identity.check(url, cluster).map_err(Failure::here),
            None => Ok(()),
        }
    }

    /// Sends to one endpoint; returns once the head of the answer is there.
    pub(super) async fn send(
        &self,
        url: &str,
        request: &Request<'_>,
    ) -> Result<Response<Incoming>, Failure> {
        let key = utf8_percent_encode(request.key, KEY);
        let uri = format!("{url}/v2/keys{key}?{}", request.query);
        let answer = self.request(&uri, request.method.clone(), request.form.clone()).await?;
        self.check_cluster(url, &answer)?;
        Ok(answer)
    }

    /// What `/version` says at the first endpoint that answers.
    pub(super) async fn version(&self) -> Option<String> {
        let answer = self.first_version().await?;
        let answer = timeout(CALL_TIMEOUT, read(answer)).await.ok()?.ok()?.ok()?;
        Some(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// What the clock of the first endpoint that answers says.
    pub(super) async fn date(&self) -> Option<SystemTime> {
        let answer = self.first_version().await?;
        httpdate::parse_http_date(answer.headers().get(DATE)?.to_str().ok()?).ok()
    }

    async fn first_version(&self) -> Option<Response<Incoming>> {
        for url in &self.urls {
            let url = format!("{url}/version");
            let asked = self.request(&url, Method::GET, None);
            if let Ok(Ok(answer)) = timeout(CALL_TIMEOUT, asked).await {
                return Some(answer);
            }
        }
        None
    }

    async fn request(
        &self,
        uri: &str,
        method: Method,
        form: Option<String>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut builder = hyper::Request::builder().method(method).uri(uri);
        let login = authorization(self.login.as_ref()).await;
        if let Some(login) = login.map_err(|error| Failure::here(error.to_string()))? {
            builder = builder.header(AUTHORIZATION, login);
        }
        if form.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = Full::new(Bytes::from(form.unwrap_or_default()));
        let request = builder.body(body).map_err(|error| Failure::everywhere(words(&error)))?;
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner).clone();
        http.request(request).await.map_err(|error| Failure::here(words(&error)))
    }
}

/// Basic auth, if there is a user.
async fn authorization(login: Option<&Login>) -> Result<Option<HeaderValue>, SourceError> {
    let Some(login) = login else { return Ok(None) };
    let (user, password) = (&login.user, login.password().await?);
    let words = format!("{user}:{}", password.expose());
    let words = base64::engine::general_purpose::STANDARD.encode(words);
    let mut value = HeaderValue::try_from(format!("Basic {words}"))
        .map_err(|error| bad("--etcd-username", error))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// `name=value` of a form.
pub(super) fn field(name: &str, value: &str) -> String {
    format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
}

/// Reads the rest of an answer.
pub(super) async fn read(answer: Response<Incoming>) -> Result<Answered, Failure> {
    let (head, body) = answer.into_parts();
    let index = index(&head.headers);
    let body = Limited::new(body, ANSWER_LIMIT)
        .collect()
        .await
        .map_err(|error| Failure::here(words(&*error)))?
        .to_bytes();
    if head.status.is_success() {
        return Ok(Ok(Answer { body, index }));
    }
    judge(head.status, &body, index).map(Err)
}

/// `X-Etcd-Index`, 0 without it.
pub(super) fn index(headers: &hyper::HeaderMap) -> i64 {
    headers.get("x-etcd-index").and_then(|index| index.to_str().ok()?.parse().ok()).unwrap_or(0)
}
