//! Parts of the programs that are functions of their own. The verifier goes through such a
//! function once; what is a part of its callers it goes through once for each state in which
//! one gets there. They take integers, the packet, and structures without a byte that may
//! not have been written.
//!
//! A search would cost a kernel of 6.1 more than a million steps else. So is each step of a
//! search a function, too: the verifier goes through a loop once for each number.

use aya_ebpf::bindings::__sk_buff;
use flannel_ebpf::abi::Flow;
use flannel_ebpf::path::decap;
use flannel_ebpf::path::eager::Opening;
use flannel_ebpf::path::exemption::Asked;
use flannel_ebpf::path::leave::{Grounds, Left};
use flannel_ebpf::path::proof::Witness;
use flannel_ebpf::path::segment::Segment;
use flannel_ebpf::path::source::Sender;
use flannel_ebpf::path::ticket::{self, Among, Checked, Entry};

use super::{EXEMPTIONS, FlowRef, Maps, PROOF};
use crate::skb::Buff;

/// [`Asked::is_covered`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_is_exempt(addresses: u64, rest: u64) -> u64 {
    Asked { addresses, rest }.is_covered(&Maps::without_context()).into()
}

/// A step of `fl_is_exempt`.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_is_exempt_by(addresses: u64, rest: u64, index: u64) -> u64 {
    let asked = Asked { addresses, rest };
    EXEMPTIONS.get(index as u32).is_some_and(|exemption| asked.is_covered_by(exemption)).into()
}

/// [`ticket::none_is_later`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_is_last(index: u64, sequence: u64, among: u64) -> u64 {
    let (tables, among) = (Maps::without_context(), Among(among as u32));
    ticket::none_is_later(&tables, index as u32, sequence as u32, among).into()
}

/// [`ticket::is_followed`], a step of `fl_is_last`.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_is_followed(index: u64, step: u64, among: u64) -> u64 {
    let (tables, among) = (Maps::without_context(), Among(among as u32));
    ticket::is_followed(&tables, index as u32, step as u32, among).into()
}

/// [`Sender::judged`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_judge(addresses: u64, is_whole: u64, now: u64) -> u64 {
    Sender { addresses, is_whole, now }.judged(&Maps::without_context()).0
}

/// [`Witness::examine`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_examine(witness: u64, now: u64) -> u64 {
    Witness(witness).examine(&Maps::without_context(), now).0
}

/// [`Witness::confirm`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_confirm(witness: u64, now: u64) -> u64 {
    let Some(proof) = PROOF.get(0) else { return 0 };
    Witness(witness).confirm(&Maps::without_context(), proof, now).into()
}

/// [`Witness::confirm_pair`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_confirm_pair(witness: u64) -> u64 {
    if let Some(proof) = PROOF.get(0) {
        Witness(witness).confirm_pair(&Maps::without_context(), proof);
    }
    0
}

/// [`Witness::bar`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_bar(witness: u64, now: u64) -> u64 {
    if let Some(proof) = PROOF.get(0) {
        Witness(witness).bar(&Maps::without_context(), proof, now);
    }
    0
}

/// [`Checked::take`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_note_checked(
    skb: *mut __sk_buff,
    addresses: u64,
    rest: u64,
    entry: *const Entry,
) -> u64 {
    // SAFETY: the verifier lets through what points to a whole structure, or is null.
    let Some(entry) = (unsafe { entry.as_ref() }) else { return 0 };
    let checked = Checked { addresses, rest };
    checked.take(&mut Buff::new(skb), &Maps::without_context(), entry);
    0
}

/// [`Left::leave`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_leave(
    skb: *mut __sk_buff,
    segment: *const Segment,
    entry: *const Entry,
    found: *mut Flow,
    rest: u64,
) -> u64 {
    // SAFETY: as in `fl_note_checked`.
    let (Some(segment), Some(entry)) = (unsafe { (segment.as_ref(), entry.as_ref()) }) else {
        return 0;
    };
    let left = Left {
        segment,
        entry,
        direction: (rest >> 8) as u8,
        grounds: match (rest >> 16) as u8 {
            ALL => Grounds::All,
            SETTLED => Grounds::Settled,
            _ => Grounds::None,
        },
        flags: rest as u8,
        always: rest >> 24 != 0,
    };
    // SAFETY: this program calls it, with an element that it has found.
    let found = unsafe { FlowRef::new(found) };
    left.leave(&mut Buff::new(skb), &Maps::without_context(), found.as_ref());
    0
}

const ALL: u8 = Grounds::All as u8;
const SETTLED: u8 = Grounds::Settled as u8;

/// [`decap::frame_for_pod`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_frame_for_pod(
    skb: *mut __sk_buff,
    segment: *const Segment,
    flow: *const Flow,
) -> u64 {
    // SAFETY: as in `fl_note_checked`.
    let (Some(segment), Some(flow)) = (unsafe { (segment.as_ref(), flow.as_ref()) }) else {
        return 0;
    };
    decap::frame_for_pod(&mut Buff::new(skb), segment, flow).into()
}

/// [`Opening::open`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_open(first: u64, second: u64, sender: u64, now: u64) -> u64 {
    Opening { key: [first, second], sender, now }.open(&Maps::without_context());
    0
}
