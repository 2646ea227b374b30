//! Parts of the programs that are functions of their own. The verifier goes through such a
//! function once; what is a part of its callers it goes through once for each state in which
//! one gets there. They take integers only: those need no checks.
//!
//! A search would cost a kernel of 6.1 more than a million steps else. So is each step of a
//! search a function, too: the verifier goes through a loop once for each number.

use flannel_ebpf::path::eager::Opening;
use flannel_ebpf::path::exemption::Asked;
use flannel_ebpf::path::proof::Witness;
use flannel_ebpf::path::source::Sender;
use flannel_ebpf::path::ticket::{self, Among, Of};

use super::{EXEMPTIONS, Maps, PROOF};

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

/// A step of `fl_is_last`.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_are_of_same(index: u64, later: u64, of_peer: u64) -> u64 {
    let of = if of_peer == 0 { Of::Flow } else { Of::Peer };
    ticket::are_of_same(&Maps::without_context(), index as u32, later as u32, of).into()
}

/// [`Sender::judged`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_judge(addresses: u64, is_whole: u64, now: u64) -> u64 {
    Sender { addresses, is_whole, now }.judged(&Maps::without_context()).0
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

/// [`Opening::open`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_open(first: u64, second: u64, sender: u64, now: u64) -> u64 {
    Opening { key: [first, second], sender, now }.open(&Maps::without_context());
    0
}
