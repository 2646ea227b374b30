//! An etcd on loopback, for one test.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;
pub(crate) use nix::sys::signal::Signal;
use tempfile::TempDir;

/// An etcd process with its data; both go when it is dropped.
pub(crate) struct Etcd {
    child: Option<Child>,
    data: TempDir,
    scheme: &'static str,
    port: u16,
    peer_port: u16,
    more: Vec<String>,
    /// `--initial-cluster-token`, from which a new cluster's id comes.
    token: &'static str,
}

impl Etcd {
    /// Starts one without TLS and waits until it serves.
    pub(crate) async fn start() -> Self {
        let mut etcd = Self::new("http", &[]);
        etcd.spawn().await;
        etcd
    }

    /// Starts one that serves TLS, with these further flags.
    pub(crate) async fn start_tls(more: &[String]) -> Self {
        let mut etcd = Self::new("https", more);
        etcd.spawn().await;
        etcd
    }

    /// Starts one without the v2 API.
    #[allow(dead_code, reason = "v3 alone is what the tests of v2 need it for")]
    pub(crate) async fn start_without_v2() -> Self {
        let mut etcd = Self::new("http", &[]);
        etcd.more.clear();
        etcd.spawn().await;
        etcd
    }

    fn new(scheme: &'static str, more: &[String]) -> Self {
        let (port, peer_port) = (free_port(), free_port());
        let data = tempfile::tempdir().unwrap();
        let mut more = more.to_vec();
        more.push("--enable-v2".to_owned());
        Self { child: None, data, scheme, port, peer_port, more, token: "etcd-cluster" }
    }

    /// Starts it (again), on the same port and data.
    pub(crate) async fn spawn(&mut self) {
        let url = self.url();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.data.path())
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .args(["--initial-cluster-token", self.token])
            .args(&self.more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd must be installed");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.serves().await {
            assert!(Instant::now() < deadline, "etcd does not serve at {url}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn serves(&self) -> bool {
        if self.scheme == "https" {
            return tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok();
        }
        let Ok(client) = Client::connect([self.url()], None).await else { return false };
        let get = client.kv_client().get("ready", None).await.map(|_| ());
        match get {
            Ok(()) => true,
            // Users are on: it does serve.
            Err(error) => error.to_string().contains("user name is empty"),
        }
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Takes the data away and starts it anew; returns the data.
    pub(crate) async fn restart_empty(&mut self, token: &'static str) -> TempDir {
        self.restart_with(tempfile::tempdir().unwrap(), token).await
    }

    /// Starts it anew with these data; returns those that it had.
    pub(crate) async fn restart_with(&mut self, data: TempDir, token: &'static str) -> TempDir {
        self.kill();
        let before = std::mem::replace(&mut self.data, data);
        self.token = token;
        self.spawn().await;
        before
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id().cast_signed();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// A client of its own, for what tests do behind the agent's back.
    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens at now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A way to an etcd that can be cut.
pub(crate) struct Way {
    port: u16,
    to: u16,
    accepted: Arc<AtomicUsize>,
    running: tokio::task::JoinHandle<()>,
}

impl Way {
    pub(crate) async fn to(etcd: &Etcd) -> Self {
        let (port, accepted) = (free_port(), Arc::default());
        let running = forward(port, etcd.port(), Arc::clone(&accepted)).await;
        Self { port, to: etcd.port(), accepted, running }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends all connections and takes no new ones.
    pub(crate) async fn cut(&mut self) {
        self.running.abort();
        let _ = (&mut self.running).await;
    }

    pub(crate) async fn mend(&mut self) {
        self.running = forward(self.port, self.to, Arc::clone(&self.accepted)).await;
    }

    /// Connections that were ever made.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn forward(port: u16, to: u16, accepted: Arc<AtomicUsize>) -> tokio::task::JoinHandle<()> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        // Dropped, and with it every connection, when this task is aborted.
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::Relaxed);
            connections.spawn(async move {
                if let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", to)).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    })
}
