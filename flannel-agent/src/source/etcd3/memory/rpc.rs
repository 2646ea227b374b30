//! Requests and answers in gRPC's framing, and what becomes of them on the way.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbRangeRequest, PbStatusResponse,
    PbTxnRequest, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse,
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Frame};
use hyper::{HeaderMap, Request, Response};
use prost::Message;
use tokio::sync::mpsc;
use tonic::body::Body;

use super::data::{Data, Refusal};
use super::{Fault, Memory, WAY};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub(super) async fn serve(
    store: Memory,
    who: usize,
    alive: Arc<AtomicBool>,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError> {
    let (parts, mut body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    // A whole message is in the first frame; that of a watch stays open.
    let frame = body.frame().await.ok_or("no message")??;
    let message = frame.into_data().map_err(|_| "no message")?.slice(5..);
    tokio::time::sleep(WAY).await;
    if path.ends_with("/Watch") {
        let fate = store.fate(who, &alive);
        return Ok(if fate == Fault::None {
            store.watched();
            watch(&store, &alive, body, &message)
        } else {
            refused(Refusal::AWAY)
        });
    }
    let now = |store: &Memory| store.with(|data| call(data, who, &path, &message));
    let answer = match store.fate(who, &alive) {
        Fault::None => now(&store),
        Fault::Twice => {
            // Only the second answer counts.
            let _ = now(&store);
            now(&store)
        }
        Fault::Lost => Err(Refusal::AWAY),
        Fault::AnswerLost => now(&store).and(Err(Refusal::AWAY)),
        Fault::Silence => {
            let _ = now(&store);
            std::future::pending().await
        }
        Fault::Late(milliseconds) => {
            let (path, message) = (path.clone(), message.clone());
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
                store.with(|data| call(data, who, &path, &message))
            });
            Err(Refusal::AWAY)
        }
    };
    Ok(answer.map_or_else(refused, answered))
}

fn call(data: &mut Data, who: usize, path: &str, message: &Bytes) -> Result<Bytes, Refusal> {
    Ok(match path.rsplit('/').next().unwrap_or_default() {
        "Range" => {
            let PbRangeRequest { key, range_end, .. } = read(message);
            framed(&data.range(&key, &range_end))
        }
        "Txn" => framed(&data.transact(who, read::<PbTxnRequest>(message))?),
        "LeaseGrant" => {
            let PbLeaseGrantRequest { id, ttl } = read(message);
            data.grant(id, ttl)?;
            let header = data.header();
            framed(&PbLeaseGrantResponse { header, id, ttl, error: String::new() })
        }
        "LeaseRevoke" => {
            data.revoke(who, read::<PbLeaseRevokeRequest>(message).id)?;
            framed(&PbLeaseRevokeResponse { header: data.header() })
        }
        "LeaseTimeToLive" => {
            let id = read::<PbLeaseTimeToLiveRequest>(message).id;
            let (ttl, keys) = data.time_to_live(id);
            let header = data.header();
            framed(&PbLeaseTimeToLiveResponse { header, id, ttl, granted_ttl: ttl, keys })
        }
        "Status" => {
            framed(&PbStatusResponse { header: data.header(), ..PbStatusResponse::default() })
        }
        other => unreachable!("{other}"),
    })
}

/// Tells each change, until the watch is broken, or the node has died.
fn watch(
    store: &Memory,
    alive: &Arc<AtomicBool>,
    request: Body,
    message: &Bytes,
) -> Response<Body> {
    let PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(create)) } =
        read(message)
    else {
        unreachable!("the first message of a watch creates it")
    };
    let (store, alive) = (store.clone(), Arc::clone(alive));
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        // Kept open, as the connection is.
        let _request = request;
        let mut told = store.shared.told.subscribe();
        let breaks = told.borrow().breaks;
        let mut next = create.start_revision;
        let created = PbWatchResponse { created: true, ..PbWatchResponse::default() };
        let _ = sender.send(framed(&created));
        while told.borrow_and_update().breaks == breaks
            && alive.load(std::sync::atomic::Ordering::Relaxed)
        {
            let (response, ends) = store.state().data.news(next);
            next = next.max(response.header.as_ref().map_or(0, |header| header.revision) + 1);
            let nothing = response.events.is_empty() && !ends;
            if !nothing && sender.send(framed(&response)).is_err() || ends {
                return;
            }
            tokio::select! {
                Ok(()) = told.changed() => {}
                () = sender.closed() => return,
            }
        }
    });
    grpc(Body::new(Stream(receiver)))
}

impl Data {
    /// What changed from this revision on; whether the watch ends with it.
    fn news(&self, from: i64) -> (PbWatchResponse, bool) {
        let header = self.header();
        if let Some(compact_revision) = self.is_compacted(from) {
            let response = PbWatchResponse {
                header,
                canceled: true,
                compact_revision,
                ..PbWatchResponse::default()
            };
            return (response, true);
        }
        let since = |event: &&etcd_client::proto::PbEvent| {
            event.kv.as_ref().is_some_and(|kv| kv.mod_revision >= from)
        };
        let events = self.events.iter().filter(since).cloned().collect();
        (PbWatchResponse { header, events, ..PbWatchResponse::default() }, false)
    }
}

fn read<M: Message + Default>(message: &Bytes) -> M {
    M::decode(message.clone()).expect("the client's own message")
}

fn framed(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let length = u32::try_from(encoded.len()).expect("a small message").to_be_bytes();
    [&[0][..], &length, &encoded].concat().into()
}

fn status(code: u16, words: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", code.into());
    headers.insert("grpc-message", hyper::header::HeaderValue::from_static(words));
    headers
}

fn grpc(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("application/grpc"),
    );
    response
}

fn answered(message: Bytes) -> Response<Body> {
    let trailers = async { Some(Ok(status(0, ""))) };
    grpc(Body::new(Full::new(message).with_trailers(trailers)))
}

fn refused(Refusal(code, words): Refusal) -> Response<Body> {
    let mut response = grpc(Body::empty());
    response.headers_mut().extend(status(code, words));
    response
}

/// The answers of a watch; it ends as a connection does that breaks.
struct Stream(mpsc::UnboundedReceiver<Bytes>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|message| message.map(|bytes| Ok(Frame::data(bytes))))
    }
}
