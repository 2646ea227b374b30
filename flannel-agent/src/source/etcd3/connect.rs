//! Endpoints: login, timeouts, and the next endpoint when one fails.

use std::collections::BTreeMap;
use std::future::{Future, Ready, ready};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, Error};
use hyper::Uri;
use hyper_util::rt::TokioIo;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tonic::transport::Endpoint as Transport;
use tower_service::Service;

use super::failure::{Failure, Remedy, is_auth_off, is_login_refused};
use crate::source::SourceError;
use crate::source::dial::{Address, Dialer, Stream, Trouble};
use crate::source::hint::hint;
use crate::source::identity::ClusterIdentity;
use crate::source::login::Login;
use crate::source::options::{EtcdOptions, bad_endpoint};

/// Most time that one call at one endpoint may take, connecting included.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// After so much silence the connection of an open watch is probed; etcd
/// refuses probes more often than every 5 s.
const PROBE_AFTER: Duration = Duration::from_secs(10);

/// How long the answer to a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The endpoints of one store. Calls go to the one that answered last.
pub(super) struct Endpoints {
    dialer: Dialer,
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    identity: ClusterIdentity,
    /// Counts how often all connections were left.
    left: watch::Sender<u64>,
}

struct Endpoint {
    url: String,
    address: Address,
    transport: Transport,
    dialer: Dialer,
    login: Option<Login>,
    connection: Mutex<Option<Connection>>,
    /// What leads to a store in memory.
    #[cfg(test)]
    instead: Option<Channel>,
}

/// A client on one connection, which ends with it: where the endpoint leads
/// then has to be looked at anew.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) url: String,
    trouble: Trouble,
    /// How often connections had been left before it was made.
    made: u64,
}

impl Connection {
    /// A failure of a call on it. A login that was good is out of date: the client has
    /// renewed its token in vain.
    pub(super) fn failure(&self, error: &Error) -> Failure {
        match is_login_refused(error) {
            true => Failure { remedy: Remedy::Login, ..Failure::from(error) },
            false => Failure::from(error).met(&self.trouble),
        }
    }
}

/// Gives the one connection that was made, and no second one.
struct Made(Option<Stream>);

impl Service<Uri> for Made {
    type Response = TokioIo<Stream>;
    type Error = std::io::Error;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let gone = || std::io::Error::new(std::io::ErrorKind::NotConnected, "connection closed");
        ready(self.0.take().map(TokioIo::new).ok_or_else(gone))
    }
}

impl Endpoints {
    /// Reads the files that `options` name; connects to nothing yet.
    pub(super) async fn new(options: &EtcdOptions) -> Result<Self, SourceError> {
        let dialer = Dialer::new(options, Some(b"h2"));
        let files = dialer.check().await?;
        if let Some(login) = Login::of(options) {
            login.password().await?;
        }
        let mut endpoints = Vec::new();
        for url in options.urls(files.as_ref())? {
            endpoints.push(Endpoint::new(url, options, dialer.clone())?);
        }
        Ok(Self {
            dialer,
            endpoints,
            current: AtomicUsize::new(0),
            identity: ClusterIdentity::default(),
            left: watch::Sender::new(0),
        })
    }

    /// The same for stores in memory, each of which is an endpoint.
    #[cfg(test)]
    pub(super) fn over(options: &EtcdOptions, stores: Vec<Channel>) -> Result<Self, SourceError> {
        let dialer = Dialer::new(options, Some(b"h2"));
        let endpoint = |(at, store)| {
            let mut endpoint =
                Endpoint::new(format!("http://store-{at}:2379"), options, dialer.clone())?;
            endpoint.instead = Some(store);
            Ok(endpoint)
        };
        Ok(Self {
            endpoints: stores.into_iter().enumerate().map(endpoint).collect::<Result<_, _>>()?,
            dialer,
            current: AtomicUsize::new(0),
            identity: ClusterIdentity::default(),
            left: watch::Sender::new(0),
        })
    }

    /// All endpoints, for messages.
    pub(super) fn names(&self) -> String {
        self.endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Which cluster it is.
    pub(super) fn identity(&self) -> &ClusterIdentity {
        &self.identity
    }

    /// A connection to the endpoint that answered last.
    pub(super) async fn current(&self) -> Result<Connection, Failure> {
        let endpoint = &self.endpoints[self.current.load(Ordering::Relaxed)];
        let left = *self.left.borrow();
        match timeout(CALL_TIMEOUT, endpoint.connection(&self.identity, left)).await {
            Ok(connection) => connection,
            Err(_) => Err(Failure::no_answer(CALL_TIMEOUT)),
        }
    }

    /// Leaves the current endpoint to the others, after it failed.
    pub(super) async fn leave(&self) {
        let current = self.current.load(Ordering::Relaxed);
        self.endpoints[current].forget().await;
        self.current.store((current + 1) % self.endpoints.len(), Ordering::Relaxed);
    }

    /// Leaves all connections if one began at an address that has gone.
    pub(super) fn addresses_changed(&self, is_here: &dyn Fn(IpAddr) -> bool) {
        if !self.dialer.has_lost(is_here) {
            return;
        }
        self.left.send_modify(|times| *times += 1);
    }

    /// Tells when all connections are to be left.
    pub(super) fn left(&self) -> watch::Receiver<u64> {
        self.left.subscribe()
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
        // In the order of the endpoints: the same trouble has the same words.
        let mut causes = BTreeMap::new();
        let mut refused = false;
        for n in 0..self.endpoints.len() {
            let at = (first + n) % self.endpoints.len();
            let endpoint = &self.endpoints[at];
            let failure = match endpoint.call(&send, &self.identity, self.left()).await {
                Ok(answer) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            causes.insert(at, format!("{}: {}", endpoint.url, failure.cause));
            if failure.remedy != Remedy::OtherEndpoint {
                refused = failure.remedy == Remedy::None;
                break;
            }
        }
        let cause = causes.into_values().collect::<Vec<_>>().join("; ");
        let hint = hint(&cause);
        Err(SourceError::Call { call, key: key.to_owned(), cause, hint, refused })
    }
}

impl Endpoint {
    fn new(url: String, options: &EtcdOptions, dialer: Dialer) -> Result<Self, SourceError> {
        let address = Address::parse(&url)?;
        let origin: Uri = url.parse().map_err(|error| bad_endpoint(&url, error))?;
        // TLS is the dialer's: tonic would make another.
        let plain = match url.strip_prefix("https://") {
            Some(rest) => format!("http://{rest}"),
            None => url.clone(),
        };
        let transport = Transport::from_shared(plain)
            .map_err(|error| bad_endpoint(&url, error))?
            .origin(origin)
            .http2_keep_alive_interval(PROBE_AFTER)
            .keep_alive_timeout(PROBE_TIMEOUT)
            // etcd takes probes of an idle connection for an attack.
            .keep_alive_while_idle(false);
        Ok(Self {
            url,
            address,
            transport,
            dialer,
            login: Login::of(options),
            connection: Mutex::new(None),
            #[cfg(test)]
            instead: None,
        })
    }

    /// Connects; with what the connection will meet.
    async fn channel(&self) -> Result<(Channel, Trouble), Failure> {
        #[cfg(test)]
        if let Some(store) = &self.instead {
            return Ok((store.clone(), Trouble::default()));
        }
        let stream = self.dialer.dial(&self.address).await.map_err(Failure::here)?;
        let trouble = stream.trouble();
        let channel = self.transport.connect_with_connector(Made(Some(stream))).await;
        let explained = |error: &Error| Failure::from(error).met(&trouble);
        let channel = Channel::Tonic(channel.map_err(|error| explained(&error.into()))?);
        Ok((channel, trouble))
    }

    /// The connection; it is made, and logs in if there is a user, if there is
    /// none.
    async fn connection(
        &self,
        identity: &ClusterIdentity,
        left: u64,
    ) -> Result<Connection, Failure> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref().filter(|made| made.made == left) {
            return Ok(connection.clone());
        }
        let (channel, trouble) = self.channel().await?;
        let explained = |error: &Error| Failure::from(error).met(&trouble);
        let client = self.log_in(channel, explained).await?;
        match client.maintenance_client().status().await {
            Ok(status) => {
                let cluster = status.header().map_or(0, |header| header.cluster_id());
                identity.check(&self.url, cluster).map_err(Failure::here)?;
            }
            // One that may not ask is told by each answer.
            Err(Error::GRpcStatus(status)) if is_refusal(&status) => {}
            Err(error) => return Err(explained(&error)),
        }
        let new = Connection { client, url: self.url.clone(), trouble, made: left };
        Ok(connection.insert(new).clone())
    }

    /// A client that has logged in, if there is a user, and if etcd knows any.
    async fn log_in(
        &self,
        channel: Channel,
        explained: impl Fn(&Error) -> Failure,
    ) -> Result<Client, Failure> {
        let options = ConnectOptions::new().with_require_leader(true);
        let Some(login) = &self.login else {
            let client = Client::from_channel(channel, Some(options)).await;
            return client.map_err(|error| explained(&error));
        };
        let password = login.password().await.map_err(|error| Failure::here(error.to_string()))?;
        let known = options.clone().with_user(&login.user, password.expose());
        let known = known.with_auto_token_refresh(true);
        let client = match Client::from_channel(channel.clone(), Some(known)).await {
            Err(error) if is_auth_off(&error) => {
                tracing::info!(
                    endpoint = self.url,
                    "etcd authentication is off; --etcd-username has no effect"
                );
                Client::from_channel(channel, Some(options)).await
            }
            other => other,
        };
        client.map_err(|error| explained(&error))
    }

    async fn forget(&self) {
        self.connection.lock().await.take();
    }

    /// Makes a call; on a connection that turns out to be dead, or that has to
    /// be left, once more on a new one.
    async fn call<T, F, R>(
        &self,
        send: &F,
        identity: &ClusterIdentity,
        mut left: watch::Receiver<u64>,
    ) -> Result<T, Failure>
    where
        F: Fn(Client) -> R + Send + Sync,
        R: Future<Output = Result<T, Error>> + Send,
    {
        let mut again = true;
        loop {
            let was_connected = self.connection.lock().await.is_some();
            let times = *left.borrow_and_update();
            let answer = tokio::select! {
                answer = timeout(CALL_TIMEOUT, self.once(send, identity, times)) => answer,
                Ok(()) = left.changed() => continue,
            };
            let failure = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => {
                    self.forget().await;
                    return Err(Failure::no_answer(CALL_TIMEOUT));
                }
            };
            if failure.remedy != Remedy::None {
                self.forget().await;
                if was_connected && std::mem::take(&mut again) {
                    continue;
                }
            }
            return Err(failure);
        }
    }

    async fn once<T, F, R>(
        &self,
        send: &F,
        identity: &ClusterIdentity,
        left: u64,
    ) -> Result<T, Failure>
    where
        F: Fn(Client) -> R + Send + Sync,
        R: Future<Output = Result<T, Error>> + Send,
    {
        let connection = self.connection(identity, left).await?;
        send(connection.client.clone()).await.map_err(|error| connection.failure(&error))
    }
}

fn is_refusal(status: &tonic::Status) -> bool {
    let code = status.code();
    matches!(code, tonic::Code::PermissionDenied | tonic::Code::InvalidArgument)
}
