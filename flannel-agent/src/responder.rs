//! Answers `flannel-agent connectivity` of other nodes, on our address of the overlay:
//! opt-in, few at a time, and never with more bytes than were sent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::connectivity::datagram;
use ipnetwork::Ipv4Network;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::status::Shared;

/// How often it is looked whether the address is another, or can be had now.
const LOOK: Duration = Duration::from_secs(2);
/// Connections at a time.
const CONNECTIONS: usize = 16;
/// How long a connection may last.
const CONNECTION: Duration = Duration::from_secs(2);
/// Questions that are answered in a second.
const RATE: u32 = 2000;

/// A responder; dropping this ends it.
#[derive(Debug)]
pub struct Responder(AbortHandle);

impl Drop for Responder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers from now on to nodes of `network`, on UDP and TCP `port` of the address that
/// `shared` says is ours.
pub fn start(port: u16, network: Ipv4Network, shared: Shared) -> Responder {
    let work = follow(port, network, shared.clone());
    Responder(shared.spawn("answers other nodes", work).abort_handle())
}

/// Serves the address as long as it is ours.
async fn follow(port: u16, network: Ipv4Network, shared: Shared) {
    let own = || {
        let state = shared.lock();
        let lease = state.device.as_ref().and(state.lease.as_ref());
        lease.map(|lease| lease.subnet.network())
    };
    let mut said = false;
    loop {
        let address = own();
        if let Some(address) = address {
            match listen(address, port).await {
                Ok((udp, tcp)) => {
                    tracing::info!(%address, port, "connectivity responder started");
                    said = false;
                    let changed = async {
                        while own() == Some(address) {
                            tokio::time::sleep(LOOK).await;
                        }
                    };
                    tokio::select! {
                        () = changed => {}
                        () = datagrams(&udp, network) => {}
                        () = connections(&tcp, network) => {}
                    }
                }
                Err(error) if !said => {
                    tracing::warn!(%error, %address, port, "connectivity responder unavailable");
                    said = true;
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn listen(address: Ipv4Addr, port: u16) -> io::Result<(UdpSocket, TcpListener)> {
    Ok((UdpSocket::bind((address, port)).await?, TcpListener::bind((address, port)).await?))
}

fn is_of(network: Ipv4Network, from: SocketAddr) -> bool {
    matches!(from.ip(), IpAddr::V4(address) if network.contains(address))
}

/// A second, and how many were answered in it.
struct Bound {
    since: Instant,
    count: u32,
}

impl Bound {
    fn new() -> Self {
        Self { since: Instant::now(), count: 0 }
    }

    fn allows(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count <= RATE
    }
}

/// Until the socket fails.
async fn datagrams(socket: &UdpSocket, network: Ipv4Network) {
    let mut bound = Bound::new();
    // One byte more, so that a longer datagram is known.
    let mut bytes = [0; datagram::LENGTH + 1];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut bytes).await else {
            // An ICMP error of an earlier answer, or the address has gone.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let answer = datagram::answer(&bytes[..length]).filter(|_| is_of(network, from));
        if let Some(answer) = answer.filter(|_| bound.allows(Instant::now())) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn connections(listener: &TcpListener, network: Ipv4Network) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) if is_of(network, from) => {
                tokio::spawn(async move {
                    let _ = timeout(CONNECTION, answer(stream)).await;
                    drop(place);
                });
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut question = [0; datagram::LENGTH];
    stream.read_exact(&mut question).await?;
    match datagram::answer(&question) {
        Some(answer) => stream.write_all(&answer).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_rate_is_not_answered() {
        let mut bound = Bound::new();
        let now = Instant::now();
        let answered = (0..2 * RATE).filter(|_| bound.allows(now)).count();
        assert_eq!(answered, RATE as usize);
        assert!(bound.allows(now + Duration::from_secs(2)));
    }

    #[tokio::test]
    async fn it_answers_nodes_of_the_overlay_and_nobody_else() {
        let (udp, tcp) = listen(Ipv4Addr::LOCALHOST, 0).await.unwrap();
        let (to, by_tcp) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let here: Ipv4Network = "127.0.0.0/8".parse().unwrap();
        let task =
            tokio::spawn(
                async move { tokio::join!(datagrams(&udp, here), connections(&tcp, here)) },
            );
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"anything", to).await.unwrap();
        client.send_to(&datagram::question(7), to).await.unwrap();
        let mut bytes = [0; 64];
        let (length, _) = client.recv_from(&mut bytes).await.unwrap();
        assert_eq!(datagram::number(&bytes[..length]), Some(7), "the first got no answer");
        let mut stream = TcpStream::connect(by_tcp).await.unwrap();
        stream.write_all(&datagram::question(8)).await.unwrap();
        stream.read_exact(&mut bytes[..datagram::LENGTH]).await.unwrap();
        assert_eq!(datagram::number(&bytes[..datagram::LENGTH]), Some(8));
        task.abort();
        assert!(!is_of("10.0.0.0/8".parse().unwrap(), to));
    }
}
