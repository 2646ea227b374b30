//! What a failed call means: its cause in words, and what to do about it.

use std::error::Error as _;
use std::time::Duration;

use etcd_client::Error;

use crate::source::dial::{Trouble, add};

/// etcd knows no users.
const AUTH_OFF: &str = "authentication is not enabled";

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
    // Any change of users or roles makes etcd refuse the tokens from before; one
    // that has switched users on or off wants a first one or none.
    let outdated = ["revision of auth store is old", "user name is empty", AUTH_OFF];
    if outdated.iter().any(|words| status.message().contains(words)) {
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

/// Whether etcd answered that it knows no users.
pub(super) fn is_auth_off(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.message().contains(AUTH_OFF))
}

/// Whether etcd answered that it knows no such user with this password.
pub(super) fn is_login_refused(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.message().contains("authentication failed"))
}

/// A call that failed at one endpoint.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// In words, without the endpoint.
    pub(super) cause: String,
    pub(super) remedy: Remedy,
}

impl Failure {
    /// Another endpoint may do better.
    pub(super) fn here(cause: String) -> Self {
        Self { cause, remedy: Remedy::OtherEndpoint }
    }

    pub(super) fn no_answer(limit: Duration) -> Self {
        Self::here(format!("no answer within {} s", limit.as_secs()))
    }

    /// With what its connection met.
    pub(super) fn met(self, trouble: &Trouble) -> Self {
        if self.remedy == Remedy::OtherEndpoint {
            Self { cause: trouble.explain(self.cause), ..self }
        } else {
            self
        }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { cause: cause(error), remedy: remedy(error) }
    }
}

/// The error with all its causes, each once, on one line.
fn cause(error: &Error) -> String {
    let (mut text, mut source) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    while let Some(inner) = source {
        add(&mut text, inner);
        source = inner.source();
    }
    text.replace('\n', " ")
}
