//! What the size of the flow table promises, by map system calls alone.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Barrier;

use aya::maps::{HashMap, IterableMap as _, Map, MapData};
use flannel_agent::bpf::flow_table;
use flannel_ebpf::abi::{Flow, FlowKey, Tuple4};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

const FLOWS: u32 = 4096;
const ROUNDS: u32 = 10;
/// BPF_MAP_TYPE_LRU_HASH.
const LRU_HASH: u32 = 9;

type Table = HashMap<MapData, FlowKey, Flow>;

fn create(entries: u32) -> OwnedFd {
    let (key, value) = (size_of::<FlowKey>() as u32, size_of::<Flow>() as u32);
    let map = aya_obj::Map::new_from_params(LRU_HASH, key, value, entries, 0);
    let data = MapData::create(map, "fl_flows4", None).unwrap();
    let table = Table::try_from(Map::LruHashMap(data)).unwrap();
    table.map().fd().as_fd().try_clone_to_owned().unwrap()
}

fn open(table: &OwnedFd) -> Table {
    let data = MapData::from_fd(table.try_clone().unwrap()).unwrap();
    Table::try_from(Map::LruHashMap(data)).unwrap()
}

fn key(kind: u8, number: u32) -> FlowKey {
    let tuple = Tuple4 { saddr: number.to_be_bytes(), ..Tuple4::default() };
    FlowKey { tuple, direction: kind, ..FlowKey::default() }
}

/// Fills the table with old flows. Then two CPUs renew [`FLOWS`] flows, each in
/// turn, and enter `new` others meanwhile in each round. How often a flow was gone
/// when it was to be renewed.
fn evicted(entries: u32, new: u32) -> usize {
    let table = create(entries);
    let mut old = open(&table);
    for number in 0..2 * entries {
        old.insert(key(9, number), Flow::default(), 0).unwrap();
    }
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .cycle()
        .take(2)
        .collect();
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let renew = |half: u32, cpu: usize| {
            let (mut table, barrier) = (open(&table), &barrier);
            move || {
                let mut here = CpuSet::new();
                here.set(cpu).unwrap();
                sched_setaffinity(Pid::from_raw(0), &here).unwrap();
                renew_half(&mut table, half, new / 2, barrier)
            }
        };
        let halves: Vec<_> =
            (0..2).zip(cpus).map(|(half, cpu)| scope.spawn(renew(half, cpu))).collect();
        halves.into_iter().map(|half| half.join().unwrap()).sum()
    })
}

fn renew_half(table: &mut Table, half: u32, new: u32, barrier: &Barrier) -> usize {
    let mut gone = 0;
    let mut entered = 0;
    for round in 0..=ROUNDS {
        // Each CPU takes the flows that the other one has had before.
        let flows = (0..FLOWS).filter(|flow| (flow + round) % 2 == half);
        for (done, flow) in (1..).zip(flows) {
            let known = table.get(&key(1, flow), 0).is_ok();
            gone += usize::from(round > 0 && !known);
            table.insert(key(1, flow), Flow::default(), 0).unwrap();
            while round > 0 && entered < (round - 1) * new + done * new / (FLOWS / 2) {
                table.insert(key(2 + half as u8, entered), Flow::default(), 0).unwrap();
                entered += 1;
            }
        }
        barrier.wait();
    }
    gone
}

#[test]
fn as_many_flows_as_asked_for_are_kept() {
    let entries = flow_table::entries(FLOWS).unwrap();
    assert_eq!(evicted(entries, 0), 0, "with nothing but renewals");
    assert_eq!(evicted(entries, FLOWS / 8), 0, "with an eighth of new flows");
}

/// Else the head room would be for nothing.
#[test]
fn a_table_without_head_room_evicts_what_was_just_renewed() {
    let renewals = (FLOWS * ROUNDS) as usize;
    let gone = evicted(FLOWS, 0);
    assert!(gone > renewals / 10, "{gone} of {renewals}");
}
