//! Endpoints: TLS, login, timeouts, and the next endpoint when one fails.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::failure::{Remedy, cause, remedy};
use crate::source::SourceError;
use crate::source::hint::hint;
use crate::source::options::{EtcdOptions, TlsFiles, bad_endpoint};

/// Most time that one call at one endpoint may take, connecting included.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Most time that a TCP and TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// After so much silence the connection of an open watch is probed; etcd
/// refuses probes more often than every 5 s.
const PROBE_AFTER: Duration = Duration::from_secs(10);

/// How long the answer to a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The endpoints of one store. Calls go to the one that answered last.
pub(super) struct Endpoints {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
}

struct Endpoint {
    url: String,
    options: ConnectOptions,
    client: Mutex<Option<Client>>,
}

impl Endpoints {
    /// Reads the files that `options` name; connects to nothing yet.
    pub(super) async fn new(options: &EtcdOptions) -> Result<Self, SourceError> {
        let files = TlsFiles::read(options).await?;
        let tls = files.as_ref().map(tls_options);
        let mut endpoints = Vec::new();
        for url in options.urls(files.as_ref())? {
            endpoints.push(Endpoint::new(url, options, tls.as_ref()).await?);
        }
        Ok(Self { endpoints, current: AtomicUsize::new(0) })
    }

    /// All endpoints, for messages.
    pub(super) fn names(&self) -> String {
        self.endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// A client of the endpoint that answered last, and the endpoint's name.
    pub(super) async fn current(&self) -> Result<(Client, String), Error> {
        let endpoint = &self.endpoints[self.current.load(Ordering::Relaxed)];
        Ok((endpoint.client().await?, endpoint.url.clone()))
    }

    /// Leaves the current endpoint to the others, after it failed.
    pub(super) async fn leave(&self) {
        let current = self.current.load(Ordering::Relaxed);
        self.endpoints[current].forget().await;
        self.current.store((current + 1) % self.endpoints.len(), Ordering::Relaxed);
    }

    /// Makes a call at the current endpoint, then at each other until one
    /// answers. A call that failed may have had its effect all the same.
    pub(super) async fn call<T, F, R>(
        &self,
        call: &'static str,
        key: &str,
        send: F,
    ) -> Result<T, SourceError>
    where
        F: Fn(Client) -> R + Send + Sync,
        R: Future<Output = Result<T, Error>> + Send,
        T: Send,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut causes: Vec<String> = Vec::new();
        for n in 0..self.endpoints.len() {
            let at = (first + n) % self.endpoints.len();
            let endpoint = &self.endpoints[at];
            let (cause, remedy) = match endpoint.call(&send).await {
                Ok(answer) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            causes.push(format!("{}: {cause}", endpoint.url));
            if remedy != Remedy::OtherEndpoint {
                break;
            }
        }
        let cause = causes.join("; ");
        let hint = hint(&cause);
        Err(SourceError::Call { call, key: key.to_owned(), cause, hint })
    }
}

impl Endpoint {
    async fn new(
        url: String,
        options: &EtcdOptions,
        tls: Option<&TlsOptions>,
    ) -> Result<Self, SourceError> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PROBE_AFTER, PROBE_TIMEOUT)
            // etcd takes probes of an idle connection for an attack.
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        if let (Some(rest), Some(tls)) = (url.strip_prefix("https://"), tls) {
            // A certificate names an IPv6 address without the URL's brackets.
            let bare = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            let tls = match bare {
                Some((address, _)) => tls.clone().domain_name(address),
                None => tls.clone(),
            };
            connect = connect.with_tls(tls);
        }
        // Without a user this connects to nothing, and only checks the settings.
        let check = Client::connect([&url], Some(connect.clone())).await;
        check.map_err(|error| bad_endpoint(&url, cause(&error)))?;
        if let Some((user, password)) = options.user() {
            connect = connect.with_user(user, password).with_auto_token_refresh(true);
        }
        Ok(Self { url, options: connect, client: Mutex::new(None) })
    }

    /// The client; logs in if there is a user and it has not been done.
    async fn client(&self) -> Result<Client, Error> {
        let mut client = self.client.lock().await;
        if let Some(client) = client.as_ref() {
            return Ok(client.clone());
        }
        let new = Client::connect([&self.url], Some(self.options.clone())).await?;
        Ok(client.insert(new).clone())
    }

    async fn forget(&self) {
        self.client.lock().await.take();
    }

    async fn call<T, F, R>(&self, send: &F) -> Result<T, (String, Remedy)>
    where
        F: Fn(Client) -> R + Send + Sync,
        R: Future<Output = Result<T, Error>> + Send,
    {
        let once = async || {
            let answer = async { send(self.client().await?).await };
            match timeout(CALL_TIMEOUT, answer).await {
                Ok(answer) => answer.map_err(|error| (cause(&error), remedy(&error))),
                Err(_) => {
                    let cause = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
                    Err((cause, Remedy::OtherEndpoint))
                }
            }
        };
        let mut answer = once().await;
        if matches!(answer, Err((_, Remedy::Login))) {
            self.forget().await;
            answer = once().await;
        }
        if matches!(answer, Err((_, Remedy::OtherEndpoint | Remedy::Login))) {
            self.forget().await;
        }
        answer
    }
}

/// The files in the form of the client.
fn tls_options(files: &TlsFiles) -> TlsOptions {
    let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(&files.ca));
    match &files.identity {
        Some(own) => tls.identity(Identity::from_pem(&own.cert, &own.key)),
        None => tls,
    }
}
