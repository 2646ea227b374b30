//! Which peers are reached through the overlay, and how. Pure.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::probe::Answer;

/// The datagram that the responder answers, and what it answers: the same but for the
/// first word, and as long.
pub mod datagram {
    /// Begins a question.
    pub const QUESTION: [u8; 8] = *b"flannel?";
    /// Begins an answer.
    pub const ANSWER: [u8; 8] = *b"flannel!";
    /// A question and its number.
    pub const LENGTH: usize = 16;

    /// The question with this number.
    pub fn question(number: u64) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&QUESTION);
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    /// What is answered to these bytes; nothing to what is no question.
    pub fn answer(question: &[u8]) -> Option<[u8; LENGTH]> {
        let mut bytes: [u8; LENGTH] = question.try_into().ok()?;
        (bytes[..8] == QUESTION).then(|| {
            bytes[..8].copy_from_slice(&ANSWER);
            bytes
        })
    }

    /// The number of the question that these bytes answer.
    pub fn number(answer: &[u8]) -> Option<u64> {
        let bytes: [u8; LENGTH] = answer.try_into().ok()?;
        (bytes[..8] == ANSWER).then(|| bytes[8..].try_into().map(u64::from_be_bytes).ok())?
    }
}

/// How packets go to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Way {
    /// The device that they leave by; `null` without a route.
    pub device: Option<String>,
    /// `tunnel`, `direct` (a route by the underlay), or `none`.
    pub kind: WayKind,
}

/// Of which kind a way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WayKind {
    /// Through the overlay's device.
    Tunnel,
    /// By another device.
    Direct,
    /// There is no route.
    None,
}

/// What was found of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerResult {
    /// Its subnet.
    #[schemars(with = "String")]
    pub subnet: Ipv4Network,
    /// Its PublicIP.
    pub public_ip: Ipv4Addr,
    /// Its address on the overlay, which was tried.
    pub address: Ipv4Addr,
    /// How packets go there.
    pub way: Way,
    /// An echo.
    pub icmp: Answer,
    /// A datagram to its responder; `null` if it was not sent.
    pub udp: Option<Answer>,
    /// A connection to its responder; `null` if it was not tried.
    pub tcp: Option<Answer>,
    /// What follows.
    pub state: Reach,
}

/// Whether a peer is reached.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// By all that was tried.
    Reached,
    /// By some of it.
    Partly,
    /// By nothing.
    Unreached,
}

impl Reach {
    /// Judges answers. A responder that nobody started does not count against a peer:
    /// UDP without an answer is one, as long as TCP is not open.
    pub fn of(icmp: &Answer, udp: Option<&Answer>, tcp: Option<&Answer>) -> Self {
        let (ping, datagram) = (icmp.came(), udp.is_some_and(Answer::came));
        let connection = tcp.is_none_or(Answer::came);
        match (ping, datagram) {
            (true, true) if connection => Self::Reached,
            (true, false) if tcp.is_none() => Self::Reached,
            (false, false) if !tcp.is_some_and(Answer::came) => Self::Unreached,
            _ => Self::Partly,
        }
    }
}

/// All peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Matrix {
    /// A daemon told the peers. Without one they are those of the store.
    pub daemon: bool,
    /// Peers that there are.
    pub known: usize,
    /// Peers whose responder answered.
    pub responders: usize,
    /// Those that were tried.
    pub peers: Vec<PeerResult>,
}

impl Matrix {
    /// Sums up.
    pub fn new(daemon: bool, known: usize, peers: Vec<PeerResult>) -> Self {
        let answered =
            peers.iter().filter(|peer| peer.udp.as_ref().is_some_and(Answer::came)).count();
        Self { daemon, known, responders: answered, peers }
    }

    /// How many are as `state` says.
    pub fn count(&self, state: Reach) -> usize {
        self.peers.iter().filter(|peer| peer.state == state).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAME: Answer = Answer::Came { micros: 200 };

    #[test]
    fn an_answer_is_as_long_as_its_question_and_nothing_else_is_answered() {
        let question = datagram::question(7);
        let answer = datagram::answer(&question).unwrap();
        assert_eq!((answer.len(), datagram::number(&answer)), (question.len(), Some(7)));
        assert_eq!(datagram::answer(&answer), None, "two responders would never end");
        assert_eq!(datagram::answer(&question[..15]), None);
        assert_eq!(datagram::answer(&[b'f'; 64]), None);
        assert_eq!(datagram::number(&question), None);
    }

    #[test]
    fn a_missing_responder_is_no_fault() {
        let silent = Answer::Silent;
        assert_eq!(Reach::of(&CAME, Some(&silent), None), Reach::Reached);
        assert_eq!(Reach::of(&CAME, Some(&CAME), Some(&CAME)), Reach::Reached);
        assert_eq!(Reach::of(&CAME, Some(&CAME), Some(&silent)), Reach::Partly, "TCP is broken");
        assert_eq!(Reach::of(&silent, Some(&CAME), Some(&CAME)), Reach::Partly);
        assert_eq!(Reach::of(&silent, Some(&silent), None), Reach::Unreached);
    }
}
