//! Netlink messages as they stand on the wire: for what must not get lost
//! because a library cannot parse one attribute of it. Pure.

use rtnetlink::packet_core::NLM_F_DUMP_INTR;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER_LEN: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_LEN: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER beside an attribute's kind.
const NLA_KIND: u16 = 0x3fff;

/// A message without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

/// What a message says about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A part of the answer, and whether the dump was interrupted.
    Message(Raw, bool),
    /// The end of the answer, with an errno that is 0 if all is well.
    End(i32),
}

/// A request on the wire.
pub(super) fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = HEADER_LEN + body.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// What `message` answers to the request with this sequence number.
pub(super) fn answer(message: &[u8], sequence: u32) -> Option<Answer> {
    if number(message, 8)? != sequence {
        return None;
    }
    let (kind, flags) = (kind(message)?, short(message, 6)?);
    let body = message.get(HEADER_LEN..)?;
    Some(match kind {
        // Both begin with an errno, negative.
        NLMSG_ERROR | NLMSG_DONE => {
            Answer::End((number(body, 0).unwrap_or(0) as i32).wrapping_neg())
        }
        _ => {
            let message = Raw { kind, body: body.to_vec() };
            Answer::Message(message, flags & NLM_F_DUMP_INTR != 0)
        }
    })
}

/// The kind of a message with its header.
pub(super) fn kind(message: &[u8]) -> Option<u16> {
    short(message, 4)
}

/// The u16 at this place, in host order.
pub(super) fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// The u32 at this place, in host order.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Attributes by kind, without flags; ends at the first that is cut off.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short(bytes, 0)?);
        let kind = short(bytes, 2)? & NLA_KIND;
        let value = bytes.get(ATTRIBUTE_LEN..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// An attribute on the wire.
pub(super) fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_LEN + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The first attribute of this kind.
pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A string attribute's value.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_what_is_cut_off_ends_them() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, b"clsact\0");
        put(&mut bytes, 2 | 0x8000, &[1, 2, 3, 4]);
        assert_eq!(attribute(&bytes, 1).map(text).as_deref(), Some("clsact"));
        assert_eq!(attribute(&bytes, 2), Some(&[1, 2, 3, 4][..]), "nested flag");
        assert_eq!(attribute(&bytes, 3), None);
        bytes.truncate(bytes.len() - 1);
        assert_eq!(attributes(&bytes).count(), 1);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0, "shorter than its header");
    }

    #[test]
    fn answers_are_told_from_those_to_others() {
        let wrong = request(36, 0, 7, &[]);
        assert_eq!(answer(&wrong, 8), None);
        let part = request(36, NLM_F_DUMP_INTR, 8, &[9; 4]);
        let message = Raw { kind: 36, body: vec![9; 4] };
        assert_eq!(answer(&part, 8), Some(Answer::Message(message, true)));
        let refused = request(NLMSG_ERROR, 0, 8, &(-2_i32).to_ne_bytes());
        assert_eq!(answer(&refused, 8), Some(Answer::End(2)));
        let done = request(NLMSG_DONE, 0, 8, &0_i32.to_ne_bytes());
        assert_eq!(answer(&done, 8), Some(Answer::End(0)));
    }
}
