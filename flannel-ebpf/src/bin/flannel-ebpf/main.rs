//! The programs: glue between `__sk_buff` ([`skb`]; `xdp_md` in [`buffer`]), the
//! maps ([`maps`]) and [`flannel_ebpf::path`].
#![no_std]
#![no_main]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "the classifier macro exports each program again, without its docs"
)]

mod buffer;
#[cfg(feature = "log")]
mod log;
mod maps;
mod skb;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use flannel_ebpf::path::{Verdict, hook};

use self::buffer::Buffer;
use self::maps::Maps;
use self::skb::Buff;

#[inline(always)]
fn run(ctx: &TcContext, hook: impl FnOnce(&mut Buff, &Maps) -> Verdict) -> i32 {
    let verdict = hook(&mut Buff::new(ctx.as_ptr().cast()), &Maps::new(ctx.as_ptr()));
    skb::carry_out(verdict)
}

/// TC ingress of the host side of a pod's veth.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run(&ctx, hook::from_pod::run)
}

/// TC egress of `flannel.<VNI>`.
#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    run(&ctx, hook::to_overlay::run)
}

/// TC ingress of the underlay devices.
#[classifier]
pub fn from_underlay(ctx: TcContext) -> i32 {
    run(&ctx, hook::from_underlay::run)
}

/// TC egress of the host side of a pod's veth.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run(&ctx, hook::to_pod::run)
}

/// TC ingress of `flannel.<VNI>`.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    run(&ctx, hook::from_overlay::run)
}

/// TC egress of the underlay device.
#[classifier]
pub fn to_underlay(ctx: TcContext) -> i32 {
    run(&ctx, hook::to_underlay::run)
}

/// XDP of the underlay device.
#[xdp(frags)]
pub fn from_wire(ctx: XdpContext) -> u32 {
    match hook::from_wire::run(&mut Buffer::new(ctx.ctx), &Maps::new(ctx.as_ptr())) {
        Verdict::Drop => XDP_DROP,
        _ => XDP_PASS,
    }
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
