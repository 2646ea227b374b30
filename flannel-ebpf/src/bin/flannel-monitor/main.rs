//! The monitor's programs: glue between the kernel's packets ([`peek`]), the maps
//! ([`maps`]) and [`flannel_ebpf::monitor`].
//!
//! They are attached to the programs of the packet path while somebody looks. Nothing of
//! ours runs on a CPU between both ends of such a program but the program: what the
//! counters gained there is its packet's.
#![no_std]
#![no_main]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "the macros export each program again, without its docs"
)]

mod maps;
mod peek;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_get_func_ret, bpf_ktime_get_ns};
use aya_ebpf::macros::{fentry, fexit};
use aya_ebpf::programs::{FEntryContext, FExitContext};
use flannel_ebpf::monitor::{self, Event, flag};

use self::peek::Peek;

/// Before a program of the packet path.
#[fentry]
pub fn entered(ctx: FEntryContext) -> i32 {
    let raw = ctx.as_ptr();
    let (Some(settings), Some(desk)) = (maps::settings(), maps::desk()) else { return 0 };
    desk.watched = 0;
    // SAFETY: a helper that takes the program's context.
    let hook = unsafe { bpf_get_attach_cookie(raw) } as u32;
    let layout = &settings.layout;
    let seen = match hook == monitor::WIRE_HOOK {
        true => Peek::buffer(raw, layout),
        false => Peek::skb(raw, layout),
    };
    let Some(seen) = seen else { return 0 };
    desk.packet = monitor::describe(&seen, settings.port);
    if !settings.filter.takes(&desk.packet) {
        return 0;
    }
    // SAFETY: a helper without arguments.
    if !settings.rate.allows(desk.due_ns, unsafe { bpf_ktime_get_ns() }) {
        desk.missed += 1;
        return 0;
    }
    maps::note_counters(desk, settings.outcomes);
    desk.watched = hook + 1;
    0
}

/// Behind it.
#[fexit]
pub fn left(ctx: FExitContext) -> i32 {
    let raw = ctx.as_ptr();
    let (Some(settings), Some(desk)) = (maps::settings(), maps::desk()) else { return 0 };
    // SAFETY: a helper that takes the program's context.
    let hook = unsafe { bpf_get_attach_cookie(raw) } as u32;
    if desk.watched != hook + 1 {
        return 0;
    }
    desk.watched = 0;
    let outcomes = maps::raised_counters(desk, settings.outcomes);
    if outcomes == 0 && settings.flags & flag::ALL == 0 {
        return 0;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    desk.due_ns = settings.rate.take(desk.due_ns, now);
    if settings.flags & flag::COUNT != 0 {
        maps::count(hook, outcomes);
    }
    if settings.flags & flag::TELL != 0 && !tell(raw, hook, outcomes, desk, now) {
        desk.missed += 1;
    }
    0
}

/// Whether there was room for the event.
#[inline(always)]
fn tell(
    raw: *mut core::ffi::c_void,
    hook: u32,
    outcomes: u64,
    desk: &monitor::Desk,
    time_ns: u64,
) -> bool {
    let mut verdict = 0_u64;
    // SAFETY: a helper that takes the program's context, and writes to `verdict`.
    unsafe { bpf_get_func_ret(raw, &mut verdict) };
    let verdict = verdict as i32;
    maps::put(&Event { time_ns, outcomes, hook, verdict, packet: desk.packet, reserved: 0 })
}

// Helpers that GPL-only programs may call are among those used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing above panics; the verifier would refuse a program that could.
    loop {}
}
