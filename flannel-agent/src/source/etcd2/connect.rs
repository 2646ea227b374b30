//! Endpoints: HTTP, TLS, basic auth, timeouts, and the next endpoint when one
//! fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use super::failure::{Failure, Refusal, judge, words};
use crate::source::SourceError;
use crate::source::hint::hint;
use crate::source::options::{EtcdOptions, TlsFiles, bad, bad_endpoint};

/// Most time that one call at one endpoint may take, connecting included.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Most time that a TCP handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes that an answer may have; 350 bytes are one lease.
const ANSWER_LIMIT: usize = 64 << 20;

/// What a key has as it is in a URL.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_');

type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The endpoints of one store. Calls go to the one that answered last.
pub(super) struct Endpoints {
    urls: Vec<String>,
    http: Http,
    authorization: Option<HeaderValue>,
    current: AtomicUsize,
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
pub(super) type Outcome = Result<Answer, Refusal>;

impl Endpoints {
    /// Reads the files that `options` name; connects to nothing yet.
    pub(super) async fn new(options: &EtcdOptions) -> Result<Self, SourceError> {
        let files = TlsFiles::read(options).await?;
        let urls = options.urls(files.as_ref())?;
        for url in &urls {
            let uri: Uri = url.parse().map_err(|error| bad_endpoint(url, error))?;
            uri.host()
                .filter(|host| !host.is_empty())
                .ok_or_else(|| bad_endpoint(url, "names no host"))?;
        }
        let authorization = match options.user() {
            Some((user, password)) => {
                let login =
                    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                let mut value = HeaderValue::try_from(format!("Basic {login}"))
                    .map_err(|error| bad("--etcd-username", error))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(Duration::from_secs(10)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(files.as_ref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { urls, http, authorization, current: AtomicUsize::new(0) })
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

    /// Makes a call at the current endpoint, then at each other until one
    /// answers. A call that failed may have had its effect all the same.
    pub(super) async fn call(&self, request: &Request<'_>) -> Result<Outcome, SourceError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut causes: Vec<String> = Vec::new();
        for n in 0..self.urls.len() {
            let at = (first + n) % self.urls.len();
            let url = &self.urls[at];
            let once = async { read(self.send(url, request).await?).await };
            let failure = match timeout(CALL_TIMEOUT, once).await {
                Ok(Ok(outcome)) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(outcome);
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::no_answer(CALL_TIMEOUT),
            };
            causes.push(format!("{url}: {}", failure.cause));
            if failure.everywhere {
                break;
            }
        }
        let cause = causes.join("; ");
        let hint = hint(&cause);
        Err(SourceError::Call { call: request.call, key: request.key.to_owned(), cause, hint })
    }

    /// Sends to one endpoint; returns once the head of the answer is there.
    pub(super) async fn send(
        &self,
        url: &str,
        request: &Request<'_>,
    ) -> Result<Response<Incoming>, Failure> {
        let key = utf8_percent_encode(request.key, KEY);
        let uri = format!("{url}/v2/keys{key}?{}", request.query);
        self.request(&uri, request.method.clone(), request.form.clone()).await
    }

    /// What `/version` says at the first endpoint that answers.
    pub(super) async fn version(&self) -> Option<String> {
        for url in &self.urls {
            let asked = async {
                let answer =
                    self.request(&format!("{url}/version"), Method::GET, None).await.ok()?;
                let body = answer.into_body().collect().await.ok()?.to_bytes();
                Some(String::from_utf8_lossy(&body).into_owned())
            };
            if let Ok(Some(text)) = timeout(CALL_TIMEOUT, asked).await {
                return Some(text);
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
        if let Some(login) = &self.authorization {
            builder = builder.header(AUTHORIZATION, login.clone());
        }
        if form.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = Full::new(Bytes::from(form.unwrap_or_default()));
        let request = builder.body(body).map_err(|error| Failure::everywhere(words(&error)))?;
        self.http.request(request).await.map_err(|error| Failure::here(words(&error)))
    }
}

/// `name=value` of a form.
pub(super) fn field(name: &str, value: &str) -> String {
    format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
}

/// Reads the rest of an answer.
pub(super) async fn read(answer: Response<Incoming>) -> Result<Outcome, Failure> {
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

fn tls_config(files: Option<&TlsFiles>) -> Result<ClientConfig, SourceError> {
    let mut roots = RootCertStore::empty();
    if let Some(files) = files {
        for ca in CertificateDer::pem_slice_iter(&files.ca) {
            let ca = ca.map_err(|error| bad("--etcd-cafile", error))?;
            // A system's bundle may have some that rustls does not take.
            let _ = roots.add(ca);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad("--etcd-endpoints", error))?
        .with_root_certificates(roots);
    match files.and_then(|files| files.identity.as_ref()) {
        None => Ok(config.with_no_client_auth()),
        Some(own) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&own.cert).collect();
            let chain = chain.map_err(|error| bad("--etcd-certfile", error))?;
            let key = PrivateKeyDer::from_pem_slice(&own.key)
                .map_err(|error| bad("--etcd-keyfile holds no private key", error))?;
            config
                .with_client_auth_cert(chain, key)
                .map_err(|error| bad("--etcd-certfile and --etcd-keyfile", error))
        }
    }
}
