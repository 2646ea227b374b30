//! Entries of the maps that somebody else wrote or deleted.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use aya::maps::{Array, Map, MapData};
use flannel_agent::bpf::loader::Loaded;
use flannel_agent::bpf::{AttachMode, Datapath as _};
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use flannel_core::schedule::MAP_STEP;
use flannel_ebpf::abi::{ABI_VERSION, Config};
use ipnetwork::Ipv4Network;

use crate::place::{isolated, open, peer};

/// Looks of one second, where the maps are small.
const SECOND: usize = 1;
/// Looks within which a small map is gone through, too.
const ROUND: usize = 5;
/// Rounds within which a large one is, where nobody misses an entry.
const CALM: usize = 16;

/// A verb of bpftool, a map, and the entry.
type Change = (&'static str, &'static str, &'static str);

/// Entries that are ours, deleted or changed.
const WRONG: [Change; 5] = [
    ("delete", "fl_subnets4", "key 24 0 0 0 10 5 99 0"),
    ("delete", "fl_peers4", "key 192 0 2 99"),
    // Another MAC and address, then another flag and id, then host bits.
    ("update", "fl_subnets4", "key 24 0 0 0 10 5 99 0 value 2 0 94 0 83 9 0 0 192 0 2 7 97 0 0 0"),
    ("update", "fl_subnets4", "key 24 0 0 0 10 5 99 0 value 2 0 0 0 0 99 1 0 192 0 2 99 3 0 0 0"),
    ("update", "fl_peers4", "key 192 0 2 99 value 3 0 0 0"),
];

/// Strangers.
const ADDED: [Change; 3] = [
    (
        "update",
        "fl_subnets4",
        "key 24 0 0 0 10 5 220 0 value 2 0 94 0 83 9 0 0 192 0 2 230 0 0 0 0",
    ),
    ("update", "fl_subnets4", "key 28 0 0 0 10 5 99 16 value 2 0 94 0 83 9 0 0 192 0 2 7 0 0 0 0"),
    ("update", "fl_peers4", "key 192 0 2 230 value 5 0 0 0"),
];

fn bpftool(pins: &Path, verb: &str, map: &str, rest: &str) -> String {
    let mut command = Command::new("bpftool");
    command.args(["-j", "map", verb, "pinned"]);
    command.arg(pins.join(format!("v{ABI_VERSION}")).join(map));
    let done = command.args(rest.split_whitespace()).output().unwrap();
    assert!(done.status.success(), "{verb} {map} {rest}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn mended(agent: &mut Loaded, looks: usize) -> u64 {
    (0..looks).map(|_| agent.mend().unwrap()).sum()
}

/// Deleted or changed in any part: it is back within a second. Added: it goes within
/// four. Once is enough.
#[test]
fn entries_that_somebody_changed_are_put_right() {
    isolated(|pins| {
        let mut agent = open(pins, AttachMode::Tcx);
        let peers: Vec<_> = (2..=200).map(peer).collect();
        agent.put_peers(&peers).unwrap();
        let bpftool = |verb: &str, map: &str, rest: &str| bpftool(pins, verb, map, rest);
        let dump = |map: &str| {
            let entries: serde_json::Value =
                serde_json::from_str(&bpftool("dump", map, "")).unwrap();
            let mut entries: Vec<String> =
                entries.as_array().unwrap().iter().map(ToString::to_string).collect();
            entries.sort();
            entries
        };
        let both = || (dump("fl_subnets4"), dump("fl_peers4"));
        assert_eq!(mended(&mut agent, 2 * ROUND), 0);
        let before = both();
        let within = WRONG.iter().map(|wrong| (wrong, SECOND));
        for ((verb, map, rest), looks) in within.chain(ADDED.iter().map(|added| (added, ROUND))) {
            bpftool(verb, map, rest);
            assert_ne!(both(), before, "{verb} {map} {rest}");
            assert_eq!(mended(&mut agent, looks), 1, "{verb} {map} {rest}");
            assert_eq!(both(), before, "{verb} {map} {rest}");
            assert_eq!(mended(&mut agent, 2 * ROUND), 0, "{verb} {map} {rest}");
        }
        agent.attend().unwrap();
        let sign = dump("fl_attended");
        bpftool("update", "fl_attended", &format!("key 0 0 0 0 value {}", "9 ".repeat(16)));
        assert_eq!(mended(&mut agent, 1), 1);
        assert_eq!(dump("fl_attended"), sign);
        // A look at everything does the same.
        WRONG.iter().chain(&ADDED).for_each(|(verb, map, rest)| drop(bpftool(verb, map, rest)));
        assert_eq!(agent.peers().unwrap().into_values().collect::<Vec<_>>(), peers);
        assert_eq!(both(), before);
        assert!(agent.mend().unwrap() > 0, "they are counted");
    });
}

/// Settings that somebody else wrote go, with all that was confirmed under them.
#[test]
fn settings_that_somebody_changed_are_put_right() {
    isolated(|pins| {
        let mut agent = open(pins, AttachMode::Tcx);
        let path = pins.join(format!("v{ABI_VERSION}/fl_cfg"));
        let map = Map::Array(MapData::from_pin(path).unwrap());
        let mut map: Array<_, Config> = map.try_into().unwrap();
        agent.raise_generation().unwrap();
        let before = map.get(&0, 0).unwrap();
        assert_eq!(mended(&mut agent, 1), 0);
        let changed = [
            Config { flags: !before.flags, ..before },
            Config { vni: 77, generation: before.generation + 1000, ..before },
            Config { generation: before.generation - 1, ..before },
        ];
        for wrong in changed {
            map.set(0, wrong, 0).unwrap();
            assert_eq!(mended(&mut agent, 1), 1, "{wrong:?}");
            let now = map.get(&0, 0).unwrap();
            assert!(now.generation > wrong.generation.max(before.generation), "{now:?}");
            assert_eq!(now, Config { generation: now.generation, ..before });
            assert_eq!(mended(&mut agent, 1), 0);
        }
    });
}

fn numbered(number: u32) -> Peer {
    Peer {
        subnet: Ipv4Network::new(Ipv4Addr::from(0x0a06_0000 + number * 16), 28).unwrap(),
        vtep_mac: MacAddr([2, 0, 0, 1, (number >> 8) as u8, number as u8]),
        public_ip: Ipv4Addr::from(0xc633_0000 + number),
    }
}

/// Where the number of entries is right, a large map is read slowly, but it is read: a
/// value that was changed, or one entry for another.
#[test]
fn large_maps_are_put_right_too() {
    isolated(|pins| {
        let mut agent = open(pins, AttachMode::Tcx);
        let many: Vec<Peer> = (0..2000).map(numbered).collect();
        agent.put_peers(&many).unwrap();
        let steps = many.len().div_ceil(MAP_STEP);
        let (soon, slowly) = (ROUND * (steps + 1), CALM * (steps + 1));
        assert_eq!(mended(&mut agent, slowly), 0);
        let of = |number: u32| {
            let octets = many[number as usize].public_ip.octets();
            format!("key {} {} {} {}", octets[0], octets[1], octets[2], octets[3])
        };
        let stranger = ("update", "key 192 0 2 230 value 5 0 0 0".to_owned());
        let changed = |number| ("update", format!("{} value 255 255 0 0", of(number)));
        let cases: [(&[(&str, String)], usize); 5] = [
            (&[("delete", of(1234))], steps),
            (std::slice::from_ref(&stranger), soon),
            (&[changed(0)], slowly),
            (&[changed(1999)], slowly),
            (&[("delete", of(77)), stranger.clone()], slowly),
        ];
        for (changes, within) in cases {
            for (verb, entry) in changes {
                bpftool(pins, verb, "fl_peers4", entry);
            }
            assert_eq!(mended(&mut agent, within), changes.len() as u64, "{changes:?}");
            assert_eq!(mended(&mut agent, slowly), 0, "{changes:?}");
        }
    });
}

/// Peers come and go while the maps are read a part at a time.
#[test]
fn what_is_written_between_two_looks_is_not_wrong() {
    isolated(|pins| {
        let mut agent = open(pins, AttachMode::Tcx);
        let many: Vec<Peer> = (0..2000).map(numbered).collect();
        agent.put_peers(&many).unwrap();
        for number in 0..40_u32 {
            agent.remove_peers(&[many[number as usize * 40].subnet]).unwrap();
            agent.put_peers(&[numbered(2000 + number), many[7]]).unwrap();
            assert_eq!(agent.mend().unwrap(), 0, "{number}");
        }
        // So many are looked up within a second, too: by more steps.
        for last in [1001_u32, 1999] {
            let subnet = many[last as usize].subnet.network().octets().map(|byte| byte.to_string());
            bpftool(pins, "delete", "fl_subnets4", &format!("key 28 0 0 0 {}", subnet.join(" ")));
        }
        assert_eq!(mended(&mut agent, many.len().div_ceil(MAP_STEP)), 2);
        // Two nodes behind one address: the id is of one that is there.
        let behind = |number: u32| Peer { public_ip: many[3].public_ip, ..numbered(number) };
        agent.put_peers(&[behind(3000), behind(3001)]).unwrap();
        agent.remove_peers(&[behind(3001).subnet]).unwrap();
        assert_eq!(mended(&mut agent, 2 * ROUND), 0);
        assert_eq!(agent.peers().unwrap().len(), 2001);
        assert_eq!(agent.mend().unwrap(), 0);
    });
}
