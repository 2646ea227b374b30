//! What an answer means that is no success.

use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;

/// The key is not as the call wanted it: nothing has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 100: there is no such key, as of this index.
    NoKey {
        /// `X-Etcd-Index`.
        index: i64,
    },
    /// 101 or 105: another one stands there.
    Differs,
    /// 401: the changes asked for are not kept any more.
    Cleared {
        /// The oldest that are.
        index: i64,
    },
}

/// A call that failed at one endpoint.
#[derive(Debug)]
pub(super) struct Failure {
    /// In words, without the endpoint.
    pub(super) cause: String,
    /// The answer is the same at every endpoint.
    pub(super) everywhere: bool,
}

impl Failure {
    pub(super) fn here(cause: String) -> Self {
        Self { cause, everywhere: false }
    }

    pub(super) fn everywhere(cause: String) -> Self {
        Self { cause, everywhere: true }
    }

    pub(super) fn no_answer(limit: Duration) -> Self {
        Self::here(format!("no answer within {} s", limit.as_secs()))
    }
}

/// etcd's own error (etcd 3.4, etcdserver/api/v2error).
#[derive(Deserialize)]
struct ErrorBody {
    #[serde(rename = "errorCode", default)]
    code: Option<u32>,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
    #[serde(default)]
    index: i64,
}

/// Tells a refusal from a failure.
pub(super) fn judge(
    status: StatusCode,
    body: &[u8],
    header_index: i64,
) -> Result<Refusal, Failure> {
    let Ok(error) = serde_json::from_slice::<ErrorBody>(body) else {
        if status == StatusCode::NOT_FOUND {
            return Err(Failure::everywhere("404, so that its v2 API is off".to_owned()));
        }
        let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
        return Err(Failure::here(format!("{status}: {}", text.trim())));
    };
    let text = match error.cause.is_empty() {
        true => error.message,
        false => format!("{}: {}", error.message, error.cause),
    };
    match error.code {
        Some(100) => Ok(Refusal::NoKey { index: header_index.max(error.index) }),
        Some(101 | 105) => Ok(Refusal::Differs),
        Some(401) => Ok(Refusal::Cleared { index: error.index }),
        // Raft's and the server's own trouble.
        Some(code @ 300..) => Err(Failure::here(format!("error {code}: {text}"))),
        Some(code) => Err(Failure::everywhere(format!("error {code}: {text}"))),
        None if status.is_client_error() => Err(Failure::everywhere(text)),
        None => Err(Failure::here(format!("{status}: {text}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, body: &str) -> Result<Refusal, Failure> {
        judge(StatusCode::from_u16(status).unwrap(), body.as_bytes(), 7)
    }

    #[test]
    fn what_is_said_of_a_key_is_no_failure() {
        let of =
            |code: u32| format!(r#"{{"errorCode":{code},"message":"m","cause":"c","index":9}}"#);
        assert_eq!(judged(404, &of(100)).unwrap(), Refusal::NoKey { index: 9 });
        assert_eq!(judged(412, &of(101)).unwrap(), Refusal::Differs);
        assert_eq!(judged(412, &of(105)).unwrap(), Refusal::Differs);
        assert_eq!(judged(400, &of(401)).unwrap(), Refusal::Cleared { index: 9 });
    }

    #[test]
    fn failures_say_whether_another_endpoint_may_do_better() {
        let cases = [
            (500, r#"{"errorCode":300,"message":"Raft Internal Error"}"#, false, "error 300"),
            (503, "Service Unavailable", false, "Service Unavailable"),
            (403, r#"{"errorCode":107,"message":"Root is read only"}"#, true, "read only"),
            (401, r#"{"message":"Insufficient credentials"}"#, true, "Insufficient credentials"),
            (404, "404 page not found\n", true, "v2 API is off"),
        ];
        for (status, body, everywhere, cause) in cases {
            let failure = judged(status, body).unwrap_err();
            assert_eq!(failure.everywhere, everywhere, "{body}");
            assert!(failure.cause.contains(cause), "{}", failure.cause);
        }
    }
}
