//! A blocking NETLINK_ROUTE socket: requests, dumps and batches.
//!
//! rtnetlink answers every request before `send` returns, so nothing here
//! waits for anybody; the receive timeout guards against lost answers. Compared
//! with an asynchronous connection there is no task that can die unnoticed, and
//! the kernel's own error text (extended acknowledgement) is kept.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{
    DefaultNla, ErrorMessage, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR,
    NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla, NlaBuffer, Parseable,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::KernelError;
use super::raw::{self, Answer, HEADER_LEN, Raw};

/// Requests in one send. Each answer takes about 800 bytes of the receive
/// buffer (212,992 by default); from about 260 on answers would be dropped.
pub(super) const BATCH: usize = 64;

const NEEDS_CAPABILITY: &str = "needs CAP_NET_ADMIN in the node's network namespace";

const TIMEOUT: Duration = Duration::from_secs(5);
const BUFFER: usize = 64 * 1024;
const DUMP_ATTEMPTS: u32 = 5;
/// NLMSGERR_ATTR_MSG.
const ATTR_MSG: u16 = 1;

/// A request with the flags that go beside NLM_F_REQUEST.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
}

/// The kernel's refusal, or a failure of the socket.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) source: io::Error,
    pub(super) detail: Option<String>,
}

impl From<io::Error> for Refused {
    fn from(source: io::Error) -> Self {
        Self { source, detail: None }
    }
}

impl Refused {
    pub(super) fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// The error of a call, with what usually causes it.
pub(super) fn explain(call: &'static str, object: String, refused: Refused) -> KernelError {
    let hint = match refused.errno() {
        libc::EPERM => Some(NEEDS_CAPABILITY.into()),
        _ if refused.source.kind() == io::ErrorKind::TimedOut => {
            Some("it may have been done; the next reconciliation reads it back".into())
        }
        _ => None,
    };
    KernelError { call, object, source: refused.source, detail: refused.detail, hint }
}

pub(super) struct RouteSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    port: u32,
}

impl RouteSocket {
    /// Opens a socket in the network namespace of the calling thread; it
    /// stays in that namespace whichever thread uses it later.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_for(NETLINK_ROUTE)
    }

    /// The same for another protocol, for raw requests and dumps.
    pub(super) fn open_for(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(TIMEOUT.as_secs() as i64, 0))?;
        // Each only makes answers smaller, richer or dumps filtered; older
        // kernels do without.
        let optional = [
            socket.set_cap_ack(true),
            socket.set_ext_ack(true),
            socket.set_netlink_get_strict_chk(true),
        ];
        for error in optional.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "netlink socket option unavailable");
        }
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER), port })
    }

    /// By which the kernel's events name this socket.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// One request that is answered by at most one message.
    pub(super) fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Refused> {
        let request = Request { message, flags: NLM_F_ACK };
        let first = self.send(std::slice::from_ref(&request))?;
        let mut found = None;
        loop {
            for (header, payload) in self.receive()? {
                if header.sequence_number != first {
                    continue;
                }
                match payload {
                    Some(NetlinkPayload::InnerMessage(message)) => found = Some(message),
                    Some(NetlinkPayload::Error(error)) => {
                        return refusal(&header, &error).map_or(Ok(found), Err);
                    }
                    _ => {}
                }
            }
        }
    }

    /// What `pick` takes of a dump, which is repeated when the kernel's table changed
    /// under it. One message is held at a time: tables may be large.
    pub(super) fn dump<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Refused> {
        let mut attempt = 1;
        loop {
            let (found, interrupted) = self.dump_once(message.clone(), &pick)?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(found);
            }
            attempt += 1;
        }
    }

    fn dump_once<T>(
        &mut self,
        message: RouteNetlinkMessage,
        pick: &impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<(Vec<T>, bool), Refused> {
        let request = Request { message, flags: NLM_F_DUMP };
        let first = self.send(std::slice::from_ref(&request))?;
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            self.fill()?;
            for (header, payload) in split(&self.buffer).filter_map(parse) {
                if header.sequence_number != first {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload {
                    Some(NetlinkPayload::InnerMessage(message)) => found.extend(pick(message)),
                    Some(NetlinkPayload::Done(done)) if done.code == 0 => {
                        return Ok((found, interrupted));
                    }
                    Some(NetlinkPayload::Done(done)) => {
                        return Err(io::Error::from_raw_os_error(-done.code).into());
                    }
                    Some(NetlinkPayload::Error(error)) => {
                        if let Some(refused) = refusal(&header, &error) {
                            return Err(refused);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// One request as it stands on the wire, and all that is answered: for
    /// messages that must not get lost because the library cannot parse them.
    pub(super) fn get_raw(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Raw>, Refused> {
        self.exchange(kind, NLM_F_ACK, body, &Some).map(|(found, _)| found)
    }

    /// A dump, likewise; repeated when the kernel's table changed under it.
    pub(super) fn dump_raw(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Raw>, Refused> {
        self.pick_raw(kind, body, Some)
    }

    /// What `pick` takes of such a dump, of which one message is held at a time.
    pub(super) fn pick_raw<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        pick: impl Fn(Raw) -> Option<T>,
    ) -> Result<Vec<T>, Refused> {
        let mut attempt = 1;
        loop {
            let (found, interrupted) = self.exchange(kind, NLM_F_DUMP, body, &pick)?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(found);
            }
            attempt += 1;
        }
    }

    fn exchange<T>(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        pick: &impl Fn(Raw) -> Option<T>,
    ) -> Result<(Vec<T>, bool), Refused> {
        self.sequence = self.sequence.wrapping_add(1);
        let first = self.sequence;
        self.socket.send(&raw::request(kind, NLM_F_REQUEST | flags, first, body), 0)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            self.fill()?;
            for message in split(&self.buffer) {
                match raw::answer(message, first) {
                    Some(Answer::Message(message, dump_interrupted)) => {
                        interrupted |= dump_interrupted;
                        found.extend(pick(message));
                    }
                    Some(Answer::End(0)) => return Ok((found, interrupted)),
                    Some(Answer::End(errno)) => {
                        return Err(io::Error::from_raw_os_error(errno).into());
                    }
                    None => {}
                }
            }
        }
    }

    /// Sends up to [`BATCH`] requests at once; one result each, in order.
    pub(super) fn batch(&mut self, requests: &[Request]) -> Vec<Result<(), Refused>> {
        debug_assert!(requests.len() <= BATCH);
        let mut results: Vec<Option<Result<(), Refused>>> = requests.iter().map(|_| None).collect();
        let acked: Vec<Request> = requests
            .iter()
            .map(|request| Request { flags: request.flags | NLM_F_ACK, ..request.clone() })
            .collect();
        let outcome = self.collect(&acked, &mut results);
        // What was not answered may have been done: reading back decides.
        let unanswered = outcome.err().unwrap_or_else(|| io::ErrorKind::TimedOut.into());
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(copy(&unanswered).into())))
            .collect()
    }

    fn collect(
        &mut self,
        requests: &[Request],
        results: &mut [Option<Result<(), Refused>>],
    ) -> io::Result<()> {
        let first = self.send(requests)?;
        let mut open = requests.len();
        while open > 0 {
            for (header, payload) in self.receive()? {
                let index = header.sequence_number.wrapping_sub(first) as usize;
                let Some(NetlinkPayload::Error(error)) = payload else { continue };
                let Some(slot) = results.get_mut(index).filter(|slot| slot.is_none()) else {
                    continue;
                };
                *slot = Some(refusal(&header, &error).map_or(Ok(()), Err));
                open -= 1;
            }
        }
        Ok(())
    }

    /// Sends the requests in one datagram; the first one's sequence number.
    fn send(&mut self, requests: &[Request]) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | request.flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, request.message.clone().into());
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[start..]);
        }
        self.socket.send(&bytes, 0)?;
        Ok(first)
    }

    /// The messages of one datagram. A message that cannot be parsed (an
    /// attribute newer than the library) keeps its header only.
    fn receive(&mut self) -> io::Result<Vec<Received>> {
        self.fill()?;
        Ok(split(&self.buffer).filter_map(parse).collect())
    }

    /// Waits for one datagram.
    fn fill(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            let Err(error) = self.socket.recv(&mut self.buffer, 0) else { return Ok(()) };
            match error.kind() {
                // With a timeout set, signals interrupt in spite of SA_RESTART.
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => {
                    let text = format!("the kernel did not answer within {} s", TIMEOUT.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                _ => return Err(error),
            }
        }
    }
}

type Received = (NetlinkHeader, Option<NetlinkPayload<RouteNetlinkMessage>>);

/// The netlink messages in a datagram.
pub(super) fn split(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.first_chunk().copied()?) as usize;
        if length < HEADER_LEN || length > bytes.len() {
            return None;
        }
        let (message, _) = bytes.split_at(length);
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some(message)
    })
}

fn parse(bytes: &[u8]) -> Option<Received> {
    let buffer = rtnetlink::packet_core::NetlinkBuffer::new_checked(&bytes).ok()?;
    let header = NetlinkHeader::parse(&buffer).ok()?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
        Ok(message) => Some((header, Some(message.payload))),
        Err(error) => {
            tracing::debug!(%error, kind = header.message_type, "netlink message not understood");
            Some((header, None))
        }
    }
}

/// `None` for an acknowledgement.
fn refusal(header: &NetlinkHeader, error: &ErrorMessage) -> Option<Refused> {
    error.code?;
    Some(Refused { source: error.to_io(), detail: text(header.flags, &error.header) })
}

/// The text of an extended acknowledgement: attributes behind the header of
/// the request (and behind its payload, unless that was left out).
fn text(flags: u16, echoed: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request = u32::from_ne_bytes(echoed.first_chunk().copied()?) as usize;
    let start = if flags & NLM_F_CAPPED != 0 { HEADER_LEN } else { request.next_multiple_of(4) };
    let mut rest = echoed.get(start..)?;
    while let Ok(buffer) = NlaBuffer::new_checked(rest) {
        let length = (buffer.length() as usize).next_multiple_of(4);
        if buffer.kind() == ATTR_MSG {
            let nla = DefaultNla::parse(&buffer).ok()?;
            let mut value = vec![0; nla.value_len()];
            nla.emit_value(&mut value);
            let text = String::from_utf8_lossy(&value).trim_end_matches('\0').to_owned();
            return Some(text).filter(|text| !text.is_empty());
        }
        rest = rest.get(length..)?;
    }
    None
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
