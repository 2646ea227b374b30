//! Connections to endpoints: TCP, and TLS with files that are read for each
//! connection, so that new ones are used without a restart.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::Uri;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

mod trouble;
mod turns;

pub(super) use self::trouble::Trouble;
use self::turns::Turns;
use super::SourceError;
use super::lookup::addresses;
use super::options::{EtcdOptions, TlsFiles, bad_endpoint};
use super::tls::Tls;

/// Most time until there is a connection by TCP, and for a handshake of TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The first of these where there is another endpoint to go to.
const BEFORE_THE_NEXT: Duration = Duration::from_secs(1);

/// So long a name's next address waits for the one before it.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// After so much silence the kernel probes a connection.
const PROBE_AFTER: Duration = Duration::from_secs(10);

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    tls: bool,
    /// A name, or an address without brackets.
    host: String,
    port: u16,
}

impl Address {
    /// Of a URL as [`EtcdOptions::urls`] gives it.
    ///
    /// # Errors
    /// [`SourceError::Options`] says what is wrong with the URL.
    pub(super) fn parse(url: &str) -> Result<Self, SourceError> {
        let uri: Uri = url.parse().map_err(|error| bad_endpoint(url, error))?;
        let address = Self::of(&uri).ok_or_else(|| bad_endpoint(url, "names no host"))?;
        // `Uri` has no port for one that it cannot read.
        match (uri.port(), uri.authority().and_then(|all| all.as_str().rsplit_once(':'))) {
            (None, Some((_, port))) if !port.is_empty() && !port.ends_with(']') => {
                Err(bad_endpoint(url, format!("{port} is no port: expected 1 to 65535")))
            }
            (Some(port), _) if port.as_u16() == 0 => {
                Err(bad_endpoint(url, "0 is no port: expected 1 to 65535"))
            }
            _ => Ok(address),
        }
    }

    /// Of a URL; `None` if it names no host.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let host = uri.host().filter(|host| !host.is_empty())?;
        // A certificate names an IPv6 address without the URL's brackets.
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // RFC 6874: before a zone the `%` is escaped.
        let host = bare.unwrap_or(host).replacen("%25", "%", 1);
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Some(Self { tls, host, port })
    }
}

/// Makes connections. Clones share everything.
#[derive(Clone)]
pub(super) struct Dialer {
    /// Where connections began.
    began: Arc<Mutex<BTreeSet<IpAddr>>>,
    turns: Arc<Turns>,
    options: Arc<EtcdOptions>,
    alpn: Option<&'static [u8]>,
}

impl Dialer {
    /// For the protocol `alpn`; none: HTTP/1.1.
    pub(super) fn new(options: &EtcdOptions, alpn: Option<&'static [u8]>) -> Self {
        let (began, turns) = (Arc::default(), Arc::default());
        Self { began, turns, options: Arc::new(options.clone()), alpn }
    }

    /// Whether a connection began at an address that is not here any more; it is
    /// told once.
    pub(super) fn has_lost(&self, is_here: &dyn Fn(IpAddr) -> bool) -> bool {
        let mut began = self.began();
        let before = began.len();
        began.retain(|address| is_here(*address));
        began.len() < before
    }

    fn began(&self) -> MutexGuard<'_, BTreeSet<IpAddr>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long name and address may take.
    fn patience(&self) -> Duration {
        let named = |endpoint: &&String| !endpoint.trim().is_empty();
        match self.options.endpoints.iter().filter(named).nth(1) {
            Some(_) => BEFORE_THE_NEXT,
            None => CONNECT_TIMEOUT,
        }
    }

    /// Reads the files of TLS and checks that they can be used.
    ///
    /// # Errors
    /// [`SourceError::Options`] names the unusable one.
    pub(super) async fn check(&self) -> Result<Option<TlsFiles>, SourceError> {
        let files = TlsFiles::read(&self.options).await?;
        if let Some(files) = &files {
            Tls::new(files, self.alpn)?;
        }
        Ok(files)
    }

    /// Connects.
    ///
    /// # Errors
    /// Why not, in words without the endpoint.
    pub(super) async fn dial(&self, address: &Address) -> Result<Stream, String> {
        let tls = if address.tls {
            let files = TlsFiles::read(&self.options).await.map_err(|error| error.to_string())?;
            let files = files.ok_or("no --etcd-cafile, and no CA bundle of the system's")?;
            Some(Tls::new(&files, self.alpn).map_err(|error| error.to_string())?)
        } else {
            None
        };
        let tcp = connect(&address.host, address.port, self.patience(), &self.turns).await?;
        if let Ok(local) = tcp.local_addr() {
            self.began().insert(local.ip());
        }
        let trouble = Trouble::of(tls.as_ref().and_then(|tls| tls.own_trouble.clone()));
        let io = match tls {
            None => Io::Plain(tcp),
            Some(tls) => {
                let stream = handshake(tcp, &address.host, &tls).await;
                Io::Tls(Box::new(stream.map_err(|cause| trouble.of_certificate(cause))?))
            }
        };
        Ok(Stream { io, trouble, broken: None })
    }
}

async fn connect(
    host: &str,
    port: u16,
    patience: Duration,
    turns: &Turns,
) -> Result<TcpStream, String> {
    let began = Instant::now();
    let found = addresses(host, patience).await?;
    let with_port = |mut address: SocketAddr| {
        address.set_port(port);
        address
    };
    let found: Vec<_> = found.into_iter().map(with_port).collect();
    match timeout(patience.saturating_sub(began.elapsed()), first(host, found, turns)).await {
        Ok(connected) => connected,
        Err(_) => Err(format!("no connection within {} s", patience.as_secs())),
    }
}

/// The first connection that is there. Each address is tried soon after the one before
/// it: of a name's addresses some may be dead.
async fn first(host: &str, addresses: Vec<SocketAddr>, turns: &Turns) -> Result<TcpStream, String> {
    let (mut rest, mut tries) = (turns.order(addresses).into_iter(), JoinSet::new());
    let mut cause = format!("{host} has no address");
    loop {
        if let Some(address) = rest.next() {
            turns.took(address);
            tries.spawn(tcp(address));
        }
        tokio::select! {
            ended = tries.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => cause = format!("tcp connect error: {error}"),
                Some(Err(error)) => cause = error.to_string(),
                None => return Err(cause),
            },
            () = sleep(NEXT_ADDRESS), if rest.len() > 0 => {}
        }
    }
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    set_socket_keepalive(&stream, true)?;
    set_tcp_keepidle(&stream, PROBE_AFTER)?;
    Ok(stream)
}

async fn handshake(tcp: TcpStream, host: &str, tls: &Tls) -> Result<TlsStream<TcpStream>, String> {
    // A certificate names an address without the link that it is on.
    let name = host.split_once('%').map_or(host, |(address, _)| address);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| format!("{host} is no name of a server: {error}"))?;
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    match timeout(CONNECT_TIMEOUT, connector.connect(name, tcp)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(tls.refusal().unwrap_or_else(|| {
            let text = words(&error);
            let closed = ["handshake eof", "reset by peer", "roken pipe"];
            if text.contains("InvalidContentType") {
                "it does not answer by TLS".to_owned()
            } else if closed.iter().any(|sign| text.contains(sign)) {
                "it closed the connection at the TLS handshake".to_owned()
            } else {
                format!("TLS handshake: {text}")
            }
        })),
        Err(_) => Err(format!("no TLS handshake within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

/// A connection.
pub(super) struct Stream {
    io: Io,
    trouble: Trouble,
    /// A write failed so.
    broken: Option<io::Error>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// What it will meet.
    pub(super) fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        result.map_err(|error| self.trouble.failed(error))
    }
}

impl Stream {
    /// Hears what the server said before it closed, and tells the error of the
    /// write then: TLS 1.3 refuses a client's certificate after the handshake
    /// only.
    fn last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut bytes = [0; 1024];
        loop {
            let mut into = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *self).poll_read(cx, &mut into) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {}
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(self.broken.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("tls", &matches!(self.io, Io::Tls(_))).finish()
    }
}

/// Polls whichever it is, and notes an error.
macro_rules! poll {
    ($stream:expr, $io:ident => $poll:expr) => {{
        let result = match &mut $stream.io {
            Io::Plain(io) => {
                let $io = Pin::new(io);
                $poll
            }
            Io::Tls(io) => {
                let $io = Pin::new(io.as_mut());
                $poll
            }
        };
        $stream.note(result)
    }};
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let result = poll!(self, io => io.poll_read(cx, into));
        if let Poll::Ready(Ok(())) = result {
            self.trouble.heard(into.filled().get(before..).unwrap_or_default());
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken.is_none() {
            let result = poll!(self, io => io.poll_write(cx, bytes));
            let Poll::Ready(Err(error)) = result else { return result };
            self.broken = Some(error);
        }
        self.last_words(cx).map(Err)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken.is_none() {
            let result = poll!(self, io => io.poll_flush(cx));
            let Poll::Ready(Err(error)) = result else { return result };
            self.broken = Some(error);
        }
        self.last_words(cx).map(Err)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll!(self, io => io.poll_shutdown(cx))
    }
}

/// The error with all its causes, each once, on one line.
pub(super) fn words(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        add(&mut text, inner);
        source = inner.source();
    }
    text.replace('\n', " ")
}

/// Adds a cause, unless it stands there.
pub(super) fn add(text: &mut String, cause: &dyn Error) {
    let words = cause.to_string();
    if !text.contains(&words) {
        text.push_str(": ");
        text.push_str(&words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_from_a_url() {
        let address = |tls, host: &str, port| Address { tls, host: host.to_owned(), port };
        for (url, expected) in [
            ("http://127.0.0.1:2379", address(false, "127.0.0.1", 2379)),
            ("https://[fd00::1]:2379", address(true, "fd00::1", 2379)),
            ("https://etcd", address(true, "etcd", 443)),
            ("http://etcd/", address(false, "etcd", 80)),
            ("http://[fe80::1%25eth0]:2379", address(false, "fe80::1%eth0", 2379)),
        ] {
            assert_eq!(Address::parse(url).unwrap(), expected, "{url}");
        }
        assert_eq!(Address::parse("http://etcd:").unwrap(), address(false, "etcd", 80));
        assert_eq!(Address::parse("http://[::1]").unwrap(), address(false, "::1", 80));
        for port in ["99999", "abc", "0", "-1"] {
            let error = Address::parse(&format!("http://a:{port}")).unwrap_err().to_string();
            assert!(error.contains(&format!("http://a:{port}: {port} is no port")), "{error}");
        }
        for url in ["http://", "http://a b"] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(&format!("--etcd-endpoints {url}")), "{error}");
        }
    }

    #[tokio::test]
    async fn a_dead_address_of_a_name_does_not_hold_up_the_next() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Full: who connects next waits for the rest of its life.
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(0).unwrap();
        let dead = full.local_addr().unwrap();
        let _queued = TcpStream::connect(dead).await.unwrap();
        let began = Instant::now();
        let all = [dead, server.local_addr().unwrap()];
        let turns = Turns::default();
        let connected = first("etcd", all.to_vec(), &turns).await.unwrap();
        assert_eq!(connected.peer_addr().unwrap(), all[1]);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        drop(server);
        let refused = first("etcd", vec![all[1]], &turns).await.unwrap_err();
        assert!(refused.starts_with("tcp connect error: "), "{refused}");
        assert_eq!(first("etcd", Vec::new(), &turns).await.unwrap_err(), "etcd has no address");
    }

    #[tokio::test]
    async fn the_next_connection_leads_to_the_name_s_next_address() {
        let server = || tokio::net::TcpListener::bind("127.0.0.1:0");
        let servers = [server().await.unwrap(), server().await.unwrap(), server().await.unwrap()];
        let all: Vec<_> = servers.iter().map(|server| server.local_addr().unwrap()).collect();
        let turns = Turns::default();
        for turn in 0..2 * all.len() {
            let connected = first("etcd", all.clone(), &turns).await.unwrap();
            assert_eq!(connected.peer_addr().unwrap(), all[turn % all.len()], "{turn}");
        }
    }

    #[test]
    fn an_endpoint_gets_a_second_if_there_is_another() {
        let patience = |endpoints: &[&str]| {
            let endpoints = endpoints.iter().map(|text| (*text).to_owned()).collect();
            Dialer::new(&EtcdOptions { endpoints, ..EtcdOptions::default() }, None).patience()
        };
        assert_eq!(patience(&["http://a", " "]), CONNECT_TIMEOUT);
        assert_eq!(patience(&["http://a", "http://b"]), BEFORE_THE_NEXT);
    }
}
