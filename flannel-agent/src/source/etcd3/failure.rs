//! What a failed call means: its cause in words, and what to do about it.

use std::error::Error as _;

use etcd_client::Error;

/// What to do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Another endpoint may do better.
    OtherEndpoint,
    /// The login is out of date; log in again.
    Login,
    /// The answer is the same everywhere.
    None,
}

/// gRPC's number of a status code (grpc.io, "Status codes and their use").
mod code {
    pub(super) const CANCELLED: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const ABORTED: i32 = 10;
    pub(super) const INTERNAL: i32 = 13;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

pub(super) fn remedy(error: &Error) -> Remedy {
    let Error::GRpcStatus(status) = error else {
        return match error {
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                Remedy::None
            }
            _ => Remedy::OtherEndpoint,
        };
    };
    // Any change of users or roles makes etcd refuse the tokens from before.
    if status.message().contains("revision of auth store is old") {
        return Remedy::Login;
    }
    match status.code() as i32 {
        code::UNAUTHENTICATED => Remedy::Login,
        code::CANCELLED
        | code::UNKNOWN
        | code::DEADLINE_EXCEEDED
        | code::ABORTED
        | code::INTERNAL
        | code::UNAVAILABLE => Remedy::OtherEndpoint,
        code::RESOURCE_EXHAUSTED if !status.message().contains("database space") => {
            Remedy::OtherEndpoint
        }
        _ => Remedy::None,
    }
}

/// Whether etcd answered that a lease with this id exists.
pub(super) fn is_lease_exists(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("lease already exists"))
}

/// Whether etcd answered that there is no lease with this id.
pub(super) fn is_no_lease(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("lease not found"))
}

/// The error with all its causes, each once, on one line.
pub(super) fn cause(error: &Error) -> String {
    let (mut text, mut source) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = inner.source();
    }
    text.replace('\n', " ")
}
