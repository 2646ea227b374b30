//! Mark and priority of what leaves a node, made visible: two bytes of the source
//! MAC that are 0 otherwise. Pure.

use std::fmt::Write as _;

use super::kind::Kind;
use super::ruleset::{CLASSES, MARKS};

/// Byte of the frame that says the priority.
const PRIORITY: usize = 7;
/// Byte of the frame that says the mark.
const MARK: usize = 10;
/// A value that has no byte of its own.
const OTHER: u8 = 0xff;

/// Rules for nft that write the signs into what leaves the underlay device.
pub fn rules() -> String {
    let mut marks = String::new();
    for (number, mark) in MARKS.iter().enumerate() {
        let _ = write!(marks, "{mark:#x} : {}, ", number + 1);
    }
    // What the kernel takes from TOS (`rt_tos2priority`), and the rules' classes.
    let mut priorities = String::new();
    for priority in 1..16 {
        let _ = write!(priorities, "0:{priority:x} : {priority}, ");
    }
    for class in CLASSES {
        let _ = write!(priorities, "1:{class:x} : {class}, ");
    }
    // Offsets in bits from the start of the frame.
    let (mark, priority) = (MARK * 8, PRIORITY * 8);
    format!(
        "table netdev signs {{
            chain leaving {{
                type filter hook egress device eth1 priority 0;
                meta mark != 0 @ll,{mark},8 set {OTHER}
                meta priority != 0 @ll,{priority},8 set {OTHER}
                @ll,{mark},8 set meta mark map {{ {marks} }}
                @ll,{priority},8 set meta priority map {{ {priorities} }}
            }}
        }}"
    )
}

/// The signs, mark first, of what a node sends of a kind.
pub fn of(kind: Kind) -> [u8; 2] {
    let class = |at: usize| u8::try_from(CLASSES[at]).unwrap_or(OTHER);
    match kind {
        Kind::Mark => [1, 0],
        Kind::Priority => [0, class(0)],
        Kind::Everything => [2, class(1)],
        _ => [0, 0],
    }
}

/// The signs, mark first, of a frame of the underlay.
pub fn read(frame: &[u8]) -> Option<[u8; 2]> {
    Some([*frame.get(MARK)?, *frame.get(PRIORITY)?])
}

/// Takes the signs out of a frame of the underlay.
pub fn wipe(frame: &mut [u8]) {
    for at in [PRIORITY, MARK] {
        if let Some(byte) = frame.get_mut(at) {
            *byte = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{LEFT, RIGHT};

    #[test]
    fn signs_stand_in_bytes_that_are_zero() {
        for side in [LEFT, RIGHT] {
            let mut frame = [[9; 6], side.node_mac()].concat();
            let before = frame.clone();
            wipe(&mut frame);
            assert_eq!(frame, before);
            (frame[PRIORITY], frame[MARK]) = (3, OTHER);
        }
    }

    #[test]
    fn every_mark_and_class_of_the_rules_has_a_sign() {
        let rules = rules();
        for (mark, sign) in [("0x10", 1), ("0x20", 2)] {
            assert!(rules.contains(&format!("{mark} : {sign},")), "{rules}");
        }
        for (class, sign) in [("1:20", 0x20), ("1:30", 0x30), ("0:6", 6)] {
            assert!(rules.contains(&format!(" {class} : {sign},")), "{rules}");
        }
    }
}
