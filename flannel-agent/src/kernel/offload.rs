//! Who makes the checksums of what a device sends: whoever sends it on, or the kernel
//! before that. By ethtool's family of generic netlink (Linux 5.6). The `ethtool` crate
//! reads features and sets none.

use std::io;

use flannel_core::checksum::TunnelChecksum;

use super::raw::{self, Raw};
use super::socket::{Refused, RouteSocket};

/// What reads and sets it, for messages.
pub(super) const GET: &str = "ETHTOOL_MSG_FEATURES_GET";
pub(super) const SET: &str = "ETHTOOL_MSG_FEATURES_SET";

/// NETLINK_GENERIC.
const NETLINK_GENERIC: isize = 16;
/// GENL_ID_CTRL, its command CTRL_CMD_GETFAMILY, and its attributes.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Length of `struct genlmsghdr`.
const HEADER_LEN: usize = 4;
/// ETHTOOL_MSG_FEATURES_GET and _SET.
const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
/// ETHTOOL_A_FEATURES_HEADER, _WANTED and _ACTIVE.
const HEADER: u16 = 1;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
/// ETHTOOL_A_HEADER_DEV_INDEX.
const DEVICE_INDEX: u16 = 1;
/// ETHTOOL_A_BITSET_BITS, in it ETHTOOL_A_BITSET_BITS_BIT, in it _NAME and _VALUE.
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
/// The feature, as `ethtool -k` prints it.
const FEATURE: &str = "tx-checksum-ip-generic";

/// Who makes the checksums of what this device sends.
///
/// # Errors
/// The kernel's: ENODEV if there is no such device, ENOENT before Linux 5.6.
pub(super) fn checksum(ifindex: u32) -> Result<TunnelChecksum, Refused> {
    let mut family = Family::open()?;
    let features = family.ask(FEATURES_GET, &header(ifindex))?;
    Ok(match features.iter().any(is_active) {
        true => TunnelChecksum::Device,
        false => TunnelChecksum::Kernel,
    })
}

/// Sets it.
///
/// # Errors
/// As [`checksum`].
pub(super) fn set_checksum(ifindex: u32, by: TunnelChecksum) -> Result<(), Refused> {
    let mut attributes = header(ifindex);
    raw::put(&mut attributes, WANTED | NESTED, &feature(by == TunnelChecksum::Device));
    Family::open()?.ask(FEATURES_SET, &attributes).map(drop)
}

/// ethtool's family.
struct Family {
    socket: RouteSocket,
    id: u16,
}

impl Family {
    fn open() -> Result<Self, Refused> {
        let mut control = Self { socket: RouteSocket::open_for(NETLINK_GENERIC)?, id: CONTROL };
        let mut name = Vec::new();
        raw::put(&mut name, FAMILY_NAME, b"ethtool\0");
        let answers = control.ask(GET_FAMILY, &name)?;
        let id = answers.iter().find_map(|answer| raw::short(attribute(answer, FAMILY_ID)?, 0));
        let id = id.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { id, ..control })
    }

    fn ask(&mut self, command: u8, attributes: &[u8]) -> Result<Vec<Raw>, Refused> {
        // Version 1 of both families, and two bytes that are reserved.
        let body = [&[command, 1, 0, 0], attributes].concat();
        self.socket.get_raw(self.id, &body)
    }
}

fn attribute(answer: &Raw, kind: u16) -> Option<&[u8]> {
    raw::attribute(answer.body.get(HEADER_LEN..)?, kind)
}

fn header(ifindex: u32) -> Vec<u8> {
    let (mut index, mut header) = (Vec::new(), Vec::new());
    raw::put(&mut index, DEVICE_INDEX, &ifindex.to_ne_bytes());
    raw::put(&mut header, HEADER | NESTED, &index);
    header
}

/// The one bit to change. One that is named without a value is to be off.
fn feature(on: bool) -> Vec<u8> {
    let (mut name, mut bit, mut bits) = (Vec::new(), Vec::new(), Vec::new());
    raw::put(&mut name, BIT_NAME, format!("{FEATURE}\0").as_bytes());
    if on {
        raw::put(&mut name, BIT_VALUE, &[]);
    }
    raw::put(&mut bit, BIT | NESTED, &name);
    raw::put(&mut bits, BITS | NESTED, &bit);
    bits
}

/// Whether the answer lists the feature as active.
fn is_active(answer: &Raw) -> bool {
    let bits = attribute(answer, ACTIVE).and_then(|active| raw::attribute(active, BITS));
    let mut bits = raw::attributes(bits.unwrap_or_default());
    bits.any(|(_, bit)| {
        raw::attribute(bit, BIT_NAME).is_some_and(|name| raw::text(name) == FEATURE)
    })
}
