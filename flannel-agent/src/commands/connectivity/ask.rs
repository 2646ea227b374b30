//! Asks the peers' responders, by UDP and TCP.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::connectivity::datagram;
use flannel_core::probe::Answer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, timeout, timeout_at};

/// Connections that are opened at a time.
const CONNECTIONS: usize = 32;

/// What became of a datagram, and of a connection to those that answered it.
pub(super) type Asked = (Option<Answer>, Option<Answer>);

/// Asks all of them, `gap` apart, and waits until `patience` after the last.
pub(super) async fn all(
    targets: &[Ipv4Addr],
    port: u16,
    gap: Duration,
    patience: Duration,
) -> io::Result<Vec<Asked>> {
    let datagrams = datagrams(targets, port, gap, patience).await?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    for (number, to) in targets.iter().copied().enumerate() {
        if !datagrams[number].came() {
            continue;
        }
        let places = Arc::clone(&places);
        tasks.spawn(async move {
            let _place = places.acquire_owned().await;
            (number, connection(to, port, patience).await)
        });
    }
    let mut asked: Vec<Asked> = datagrams.into_iter().map(|answer| (Some(answer), None)).collect();
    while let Some(done) = tasks.join_next().await {
        let (number, answer) = done.map_err(io::Error::other)?;
        asked[number].1 = Some(answer);
    }
    Ok(asked)
}

fn came(since: Instant) -> Answer {
    Answer::Came { micros: since.elapsed().as_micros().try_into().unwrap_or(u64::MAX) }
}

fn failed(error: &io::Error) -> Answer {
    Answer::NotSent { reason: error.to_string() }
}

struct Sent {
    to: Ipv4Addr,
    at: Instant,
    answer: Option<Answer>,
}

async fn datagrams(
    targets: &[Ipv4Addr],
    port: u16,
    gap: Duration,
    patience: Duration,
) -> io::Result<Vec<Answer>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    // Answers to an earlier run are none to this.
    let first: u64 = rand::random();
    let mut sent: Vec<Sent> = Vec::with_capacity(targets.len());
    for (number, to) in targets.iter().copied().enumerate() {
        let at = Instant::now();
        let question = datagram::question(first.wrapping_add(number as u64));
        let answer = socket.send_to(&question, (to, port)).await.err();
        sent.push(Sent { to, at, answer: answer.as_ref().map(failed) });
        hear(&socket, first, &mut sent, Clock::now() + gap, false).await;
    }
    hear(&socket, first, &mut sent, Clock::now() + patience, true).await;
    Ok(sent.into_iter().map(|sent| sent.answer.unwrap_or(Answer::Silent)).collect())
}

/// Reads until then; or, if nothing more will be `asked`, until all have answered.
async fn hear(socket: &UdpSocket, first: u64, sent: &mut [Sent], end: Clock, asked: bool) {
    let mut bytes = [0; datagram::LENGTH + 1];
    while !asked || sent.iter().any(|sent| sent.answer.is_none()) {
        let Ok(heard) = timeout_at(end, socket.recv_from(&mut bytes)).await else { return };
        // An error is what ICMP said of an earlier question.
        let Ok((length, from)) = heard else { continue };
        let number = datagram::number(&bytes[..length])
            .and_then(|number| usize::try_from(number.wrapping_sub(first)).ok());
        if let Some(sent) = number.and_then(|number| sent.get_mut(number))
            && from.ip() == sent.to
            && sent.answer.is_none()
        {
            sent.answer = Some(came(sent.at));
        }
    }
}

async fn connection(to: Ipv4Addr, port: u16, patience: Duration) -> Answer {
    let start = Instant::now();
    let exchange = async {
        let mut stream = TcpStream::connect((to, port)).await?;
        stream.write_all(&datagram::question(0)).await?;
        let mut answer = [0; datagram::LENGTH];
        stream.read_exact(&mut answer).await?;
        match datagram::number(&answer) {
            Some(0) => Ok(()),
            _ => Err(io::Error::other("something else answers there")),
        }
    };
    match timeout(patience, exchange).await {
        Ok(Ok(())) => came(start),
        Ok(Err(error)) => failed(&error),
        Err(_) => Answer::Silent,
    }
}
