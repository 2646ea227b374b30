//! Why packets are the kernel's, told by aya-log: in the developers' build only
//! (`cargo xtask build-ebpf --log`).

use aya_log_ebpf::info;
use flannel_ebpf::abi::Outcome;

/// Tells an outcome that says why a packet is the kernel's.
#[inline(always)]
pub(crate) fn outcome(outcome: Outcome) {
    let number = outcome as u32;
    if (Outcome::KernelUnconfirmed as u32..=Outcome::KernelNoRoom as u32).contains(&number) {
        fl_log(number.into());
    }
}

/// A function of its own: programs have no stack left for what a message takes.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn fl_log(outcome: u64) -> u64 {
    info!((), "left to the kernel: outcome {}", outcome);
    0
}
