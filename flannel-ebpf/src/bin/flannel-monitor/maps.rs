//! The maps: the monitor's own, and the counters of the packet path.

use aya_ebpf::btf_maps::{Array, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use flannel_ebpf::abi::OUTCOMES;
use flannel_ebpf::monitor::{self, COUNTERS, Desk, EVENTS_SIZE, Event, Settings};

#[btf_map(name = "mon_settings")]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "mon_desk")]
static DESK: PerCpuArray<Desk, 1> = PerCpuArray::new();
#[btf_map(name = "mon_events")]
static EVENTS: RingBuf<Event, EVENTS_SIZE> = RingBuf::new();
#[btf_map(name = "mon_counts")]
static COUNTS: PerCpuArray<u64, COUNTERS> = PerCpuArray::new();
/// The packet path's, by its pin.
#[btf_map(name = "fl_stats")]
static STATS: PerCpuArray<u64, { OUTCOMES as usize }> = PerCpuArray::new();

/// What is looked at.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// This CPU's notes.
#[inline(always)]
pub(crate) fn desk() -> Option<&'static mut Desk> {
    let desk = DESK.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element. No other program of this object runs on the CPU
    // meanwhile: those that it is attached to run to their end, one after another.
    Some(unsafe { &mut *desk })
}

/// Whether an outcome is one of these; all are, if none is named.
#[inline(always)]
fn is_wanted(outcomes: u64, outcome: u32) -> bool {
    outcomes == 0 || outcomes & 1 << outcome != 0
}

/// Notes the wanted counters.
#[inline(always)]
pub(crate) fn note_counters(desk: &mut Desk, wanted: u64) {
    for outcome in 0..OUTCOMES {
        if is_wanted(wanted, outcome)
            && let Some(count) = STATS.get(outcome)
        {
            desk.before[outcome as usize] = *count;
        }
    }
}

/// The wanted counters that were raised since.
///
/// They are gathered in the map: in a register each would be a state of its own to the
/// verifier of 6.1, and they would be too many.
#[inline(always)]
pub(crate) fn raised_counters(desk: &mut Desk, wanted: u64) -> u64 {
    let raised = &raw mut desk.raised;
    // SAFETY: a member of this CPU's own element, here and below.
    unsafe { raised.write_volatile(0) };
    for outcome in 0..OUTCOMES {
        if is_wanted(wanted, outcome)
            && let Some(count) = STATS.get(outcome)
            && desk.before[outcome as usize] != *count
        {
            // SAFETY: as above.
            unsafe { raised.write_volatile(raised.read_volatile() | 1 << outcome) };
        }
    }
    // SAFETY: as above.
    unsafe { raised.read_volatile() }
}

/// Counts outcomes of a hook.
#[inline(always)]
pub(crate) fn count(hook: u32, outcomes: u64) {
    for outcome in 0..OUTCOMES {
        if outcomes & 1 << outcome != 0
            && let Some(count) = COUNTS.get_ptr_mut(monitor::count_index(hook, outcome))
        {
            // SAFETY: this CPU's own element.
            unsafe { *count += 1 };
        }
    }
}

/// Tells an event, if there is room.
#[inline(always)]
pub(crate) fn put(event: &Event) -> bool {
    EVENTS.output(event, 0).is_ok()
}
