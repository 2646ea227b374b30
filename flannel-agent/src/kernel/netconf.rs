//! The kernel's switches of each device (`net.ipv4.conf`), in one message each. Pure.

use flannel_core::forwarding::SwitchedOff;

use super::raw;

pub(super) const RTM_NEWNETCONF: u16 = 80;
pub(super) const RTM_GETNETCONF: u16 = 82;
/// Length of `struct netconfmsg`, aligned.
const NETCONF_LEN: usize = 4;
pub(super) const NETCONFA_IFINDEX: u16 = 1;
pub(super) const NETCONFA_FORWARDING: u16 = 2;
pub(super) const NETCONFA_RP_FILTER: u16 = 3;
/// NETCONFA_IFINDEX_ALL: what holds for all devices.
const ALL: u32 = -1_i32 as u32;
/// NETCONFA_IFINDEX_DEFAULT: what devices to come begin with.
const DEFAULT: u32 = -2_i32 as u32;

/// Asks for those of all devices.
pub(super) fn question() -> [u8; NETCONF_LEN] {
    [libc::AF_INET as u8, 0, 0, 0]
}

fn value(body: &[u8], kind: u16) -> Option<u32> {
    let attributes = body.get(NETCONF_LEN..).unwrap_or_default();
    raw::attribute(attributes, kind).and_then(|value| raw::number(value, 0))
}

/// Notes a device whose switch is off.
pub(super) fn take(body: &[u8], off: &mut SwitchedOff) {
    if value(body, NETCONFA_FORWARDING) != Some(0) {
        return;
    }
    match value(body, NETCONFA_IFINDEX) {
        Some(ALL) => off.everywhere = true,
        Some(DEFAULT) | None => {}
        Some(ifindex) => {
            off.devices.insert(ifindex);
        }
    }
}

/// Whether a device forwards, or checks the way back, otherwise than before. A
/// new device tells of all its settings at once.
pub(super) fn forwards_otherwise(body: &[u8]) -> bool {
    let has = |kind| value(body, kind).is_some();
    value(body, NETCONFA_IFINDEX) != Some(DEFAULT)
        && !(has(NETCONFA_FORWARDING) && has(NETCONFA_RP_FILTER))
}
