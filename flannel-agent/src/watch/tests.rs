//! A watch over fakes, in paused time: what it tells the programs, and when.

mod detours;
mod limits;

use std::collections::BTreeMap;

use flannel_core::envelope::KeptWay;
use flannel_core::envelope::{Inward, Tcx, TcxProgram};
use flannel_core::envelope::{PodEnd, Stacked, TrafficControl};
use flannel_core::firewall::packet_rules::ranges::Addresses;
use flannel_core::health::{About, Subject};
use flannel_core::link::Link;
use flannel_core::pods::Choice;
use tokio::sync::mpsc;

use super::*;
use crate::bpf::fake::FakeDatapath;
use crate::kernel::fake::FakeKernel;
use crate::kernel::{EventSource, Kernel as _, KernelEvent};

const ETH0: u32 = 2;
const FLANNEL: u32 = 3;
const VETH0: u32 = 7;
const EVERY: Duration = Duration::from_secs(60);

struct Bench {
    watch: Watch,
    kernel: FakeKernel,
    datapath: FakeDatapath,
    shared: Shared,
    links: Vec<Link>,
}

fn link(ifindex: u32, name: &str, kind: &str) -> Link {
    let pod = (kind == "veth").then_some(0);
    Link {
        ifindex,
        name: name.to_owned(),
        mtu: 1450,
        up: true,
        ethernet: true,
        kind: kind.to_owned(),
        lower: pod.map(|_| 2),
        lower_netns: pod,
        ..Link::default()
    }
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self::empty();
        bench.settle();
        bench
    }

    /// One that was never settled.
    fn empty() -> Self {
        let (kernel, datapath) = (FakeKernel::default(), FakeDatapath::default());
        let shared = Shared::default();
        let network = "10.5.0.0/16".parse().unwrap();
        let window = Duration::from_secs(5);
        let watch = Watch::new(kernel.inspector(), shared.clone(), network, window);
        let links = vec![
            link(ETH0, "eth0", ""),
            link(FLANNEL, "flannel.1", "vxlan"),
            link(VETH0, "veth0", "veth"),
        ];
        Self { watch, kernel, datapath, shared, links }
    }

    /// As each look after the hooks does.
    fn settle(&mut self) -> Settled {
        let choice = Choice {
            underlay: ETH0,
            overlay: Some(FLANNEL),
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            uplinks: &BTreeSet::new(),
            names: None,
        };
        let scene = Scene::of(&self.links, choice);
        self.watch.settle(scene, 8472, &self.datapath, true, Duration::ZERO)
    }

    fn limit(&self, ifindex: u32) {
        let limited = TrafficControl { root: "tbf".to_owned(), ..TrafficControl::default() };
        self.kernel.state().traffic.insert(ifindex, limited);
    }

    fn inward(&self) -> Inward {
        self.datapath.state().veths[0].entry.unwrap().inward
    }

    fn generation(&self) -> u32 {
        self.datapath.state().generation
    }

    fn complaint(&self, what: impl Into<About>) -> Option<String> {
        self.shared.lock().health.reason(what).map(str::to_owned)
    }

    /// Starts the task; what the loop would get.
    fn start(&self) -> (mpsc::Sender<KernelEvent>, mpsc::Receiver<KernelEvent>) {
        let (events, end) = mpsc::channel(1024);
        (events, start(self.watch.clone(), end, EVERY))
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test(start_paused = true)]
async fn each_device_is_looked_at_once_and_programs_every_time() {
    let mut bench = Bench::new();
    bench.settle();
    assert_eq!(
        bench.kernel.state().traffic_looks,
        BTreeMap::from([(ETH0, 1), (FLANNEL, 1), (VETH0, 1)])
    );
    let other = TcxProgram { id: 9, ours: false, another_agents: false };
    let tcx = Tcx {
        ingress: vec![TcxProgram { id: 1, ours: true, another_agents: false }, other],
        egress: vec![],
    };
    bench.datapath.state().tcx.insert(VETH0, tcx);
    assert!(!bench.settle().veths[0].entry.unwrap().keep_out, "passes follow one another");
    tokio::time::advance(HOOKS_REST).await;
    assert!(bench.settle().veths[0].entry.unwrap().keep_out);
    bench.datapath.state().tcx.clear();
    tokio::time::advance(HOOKS_REST).await;
    assert!(!bench.settle().veths[0].entry.unwrap().keep_out);
    bench.links.push(link(9, "veth1", "veth"));
    bench.links.retain(|link| link.ifindex != VETH0);
    bench.settle();
    bench.links.push(link(VETH0, "veth0", "veth"));
    bench.settle();
    assert_eq!(bench.kernel.state().traffic_looks[&9], 1);
    assert_eq!(bench.kernel.state().traffic_looks[&VETH0], 2, "it was away");
}

#[tokio::test(start_paused = true)]
async fn new_veths_are_looked_at_in_turns_and_count_from_then_on() {
    let mut bench = Bench::new();
    let pods = 2 * u32::try_from(AT_ONCE).unwrap() + 1;
    for number in 0..pods {
        bench.links.push(link(20 + number, &format!("pod{number}"), "veth"));
    }
    for (known, unfinished) in
        [(1 + AT_ONCE, true), (1 + 2 * AT_ONCE, true), (2 + 2 * AT_ONCE, false)]
    {
        let generation = bench.generation();
        let settled = bench.settle();
        assert_eq!((settled.veths.len(), settled.unfinished), (known, unfinished));
        assert!(settled.veths.iter().all(|veth| !veth.entry.unwrap().keep_out));
        assert_eq!(bench.datapath.state().veths.len(), known);
        assert_eq!(bench.generation(), generation, "nobody's confirmations end");
    }
    let looks = bench.kernel.state().traffic_looks.clone();
    assert!(looks.values().all(|looks| *looks == 1), "{looks:?}");
}

#[tokio::test(start_paused = true)]
async fn all_veths_that_are_there_from_the_beginning_are_looked_at_together() {
    let mut bench = Bench::empty();
    for number in 0..50 {
        bench.links.push(link(20 + number, &format!("pod{number}"), "veth"));
    }
    let settled = bench.settle();
    assert_eq!((settled.veths.len(), settled.unfinished), (51, false));
}

#[test]
fn what_cannot_be_read_is_left_to_the_kernel_and_read_again() {
    let mut bench = Bench::new();
    bench.links.push(link(9, "veth1", "veth"));
    bench.kernel.state().traffic_fails = true;
    let kept = bench.settle().veths[1].entry.unwrap();
    assert_eq!((kept.inward, kept.keep_out), (Inward::Egress, true));
    assert_eq!(bench.settle().veths[0].entry.unwrap().inward, Inward::Peer, "it is known");
    bench.kernel.state().traffic_fails = false;
    assert_eq!(bench.settle().veths[1].entry.unwrap().inward, Inward::Peer);
}

#[tokio::test(start_paused = true)]
async fn a_qdisc_is_answered_at_once_and_ends_confirmations() {
    let bench = Bench::new();
    let (events, mut rest) = bench.start();
    let before = bench.generation();
    bench.limit(VETH0);
    events.send(KernelEvent::Tc { ifindex: VETH0 }).await.unwrap();
    pause(2).await;
    assert_eq!((bench.inward(), bench.generation()), (Inward::Egress, before + 1));
    assert_eq!(bench.kernel.state().traffic_looks[&FLANNEL], 1, "only that device");
    bench.limit(FLANNEL);
    events.send(KernelEvent::Tc { ifindex: FLANNEL }).await.unwrap();
    pause(30).await;
    assert!(bench.datapath.state().keep.out);
    assert_eq!(bench.generation(), before + 2);
    assert_eq!(bench.shared.lock().datapath.envelope.kept[0].way, KeptWay::KeepOut);
    bench.kernel.state().traffic.clear();
    events.send(KernelEvent::Tc { ifindex: 0 }).await.unwrap();
    pause(30).await;
    assert_eq!((bench.inward(), bench.datapath.state().keep.out), (Inward::Peer, false));
    assert!(rest.try_recv().is_err(), "nothing of that is for the loop");
}

#[tokio::test(start_paused = true)]
async fn a_script_that_adds_many_filters_costs_few_looks() {
    let bench = Bench::new();
    let (events, _rest) = bench.start();
    for _ in 0..500 {
        events.send(KernelEvent::Tc { ifindex: VETH0 }).await.unwrap();
        events.send(KernelEvent::Tc { ifindex: 99 }).await.unwrap();
        pause(1).await;
    }
    let looks = bench.kernel.state().traffic_looks[&VETH0];
    assert!((10..=30).contains(&looks), "{looks} looks in half a second");
    assert_eq!(bench.kernel.state().traffic_looks.get(&99), None, "nobody's device");
}

#[tokio::test(start_paused = true)]
async fn decisions_end_at_once_and_not_more_often_than_needed() {
    let bench = Bench::new();
    let (events, _rest) = bench.start();
    let before = bench.generation();
    for event in [KernelEvent::Decision, KernelEvent::Ruleset, KernelEvent::Rule] {
        let before = bench.generation();
        events.send(event).await.unwrap();
        pause(2).await;
        assert_eq!(bench.generation(), before + 1, "{event:?}");
        pause(60).await;
    }
    for event in [
        KernelEvent::Link { ifindex: 9 },
        KernelEvent::Address { ifindex: 9 },
        KernelEvent::Route { ifindex: 9 },
        KernelEvent::Neighbour { ifindex: FLANNEL },
        KernelEvent::Tc { ifindex: VETH0 },
    ] {
        events.send(event).await.unwrap();
    }
    pause(100).await;
    assert_eq!(bench.generation(), before + 3);
    for _ in 0..1000 {
        events.send(KernelEvent::Decision).await.unwrap();
        pause(1).await;
    }
    pause(100).await;
    let raised = bench.generation() - before - 3;
    assert!((19..=22).contains(&raised), "raised {raised} times in a second");
}

#[tokio::test(start_paused = true)]
async fn a_busy_loop_gets_each_event_once_and_keeps_nothing_waiting() {
    let bench = Bench::new();
    let (events, mut rest) = bench.start();
    for round in 0..3 {
        for ifindex in 0..500 {
            events.send(KernelEvent::Link { ifindex: 1000 + ifindex }).await.unwrap();
        }
        let before = bench.generation();
        events.send(KernelEvent::Decision).await.unwrap();
        pause(60).await;
        assert_eq!(bench.generation(), before + 1, "round {round}");
    }
    drop(events);
    let mut found = Vec::new();
    while let Some(event) = rest.recv().await {
        found.push(event);
    }
    // Those that were in the channel already may come again.
    assert!((500..=600).contains(&found.len()), "{}", found.len());
}

#[tokio::test(start_paused = true)]
async fn ipsec_policies_for_tunnel_packets_keep_them_with_the_kernel() {
    let bench = Bench::new();
    let (events, mut rest) = bench.start();
    pause(3000).await;
    let peer = Ipv4Addr::new(192, 0, 2, 7);
    bench.watch.set_peers([peer].into_iter(), 0);
    let policy = |to: Ipv4Addr| IpsecPolicy {
        destination: Addresses::prefix(to.into(), 32),
        ..IpsecPolicy::anything()
    };
    bench.kernel.state().ipsec = vec![policy(Ipv4Addr::new(192, 0, 2, 8))];
    let before = bench.generation();
    events.send(KernelEvent::IpsecPolicy).await.unwrap();
    pause(10).await;
    assert!(!bench.datapath.state().keep.out, "it is about another address");
    assert!(bench.generation() > before);
    bench.kernel.state().ipsec = vec![policy(peer)];
    events.send(KernelEvent::IpsecPolicy).await.unwrap();
    pause(10).await;
    assert!(bench.datapath.state().keep.out);
    assert!(rest.try_recv().is_err(), "it is no matter of the loop");
}

#[tokio::test(start_paused = true)]
async fn lost_events_make_it_look_at_everything() {
    let bench = Bench::new();
    let (events, mut rest) = bench.start();
    pause(3000).await;
    bench.limit(VETH0);
    bench.kernel.state().mark_rules = true;
    let before = bench.generation();
    events.send(KernelEvent::Overrun).await.unwrap();
    pause(10).await;
    assert_eq!(bench.inward(), Inward::Egress);
    assert!(bench.datapath.state().keep.marked_routes);
    assert!(bench.generation() > before);
    assert_eq!(rest.try_recv().unwrap(), KernelEvent::Overrun);
}

#[tokio::test(start_paused = true)]
async fn while_nobody_tells_it_looks_each_second_and_says_so() {
    let bench = Bench::new();
    let (events, mut rest) = bench.start();
    pause(3000).await;
    events.send(KernelEvent::Deaf(EventSource::Routing)).await.unwrap();
    pause(10).await;
    assert!(bench.complaint(Subject::KernelEvents).unwrap().contains("Routing"));
    for limited in [true, false] {
        if limited {
            bench.limit(VETH0)
        } else {
            bench.kernel.state().traffic.clear()
        }
        let before = bench.generation();
        pause(1100).await;
        assert_eq!(bench.inward(), if limited { Inward::Egress } else { Inward::Peer });
        assert!(bench.generation() > before);
    }
    events.send(KernelEvent::Hears(EventSource::Routing)).await.unwrap();
    pause(10).await;
    assert_eq!(bench.complaint(Subject::KernelEvents), None);
    assert_eq!(rest.try_recv().unwrap(), KernelEvent::Overrun, "for the loop, too");
    let looks = bench.kernel.state().traffic_looks[&VETH0];
    pause(5000).await;
    assert_eq!(bench.kernel.state().traffic_looks[&VETH0], looks);
}

#[tokio::test(start_paused = true)]
async fn what_no_event_tells_is_found_at_the_slow_look() {
    let bench = Bench::new();
    let (_events, _rest) = bench.start();
    pause(3000).await;
    bench.limit(VETH0);
    bench.kernel.state().xdp_in_pods.insert(PodEnd { netns: 0, ifindex: 2 });
    let ipvlan = Stacked { kind: "ipvlan".to_owned(), lower: ETH0 };
    bench.kernel.state().stacked.insert(4, vec![ipvlan]);
    tokio::time::sleep(EVERY).await;
    let report = bench.shared.lock().datapath.envelope.clone();
    assert_eq!(report.veths[0].why.len(), 2, "{report:?}");
    assert_eq!(report.not_served[0].to_string(), "not served: ipvlan on eth0");
}

#[tokio::test(start_paused = true)]
async fn xdp_in_a_pod_is_seen_when_its_veth_changes() {
    let bench = Bench::new();
    let (events, mut rest) = bench.start();
    bench.kernel.state().xdp_in_pods.insert(PodEnd { netns: 0, ifindex: 2 });
    events.send(KernelEvent::Link { ifindex: VETH0 }).await.unwrap();
    pause(2).await;
    assert_eq!(bench.inward(), Inward::Egress);
    assert_eq!(rest.recv().await, Some(KernelEvent::Link { ifindex: VETH0 }));
}

#[tokio::test(start_paused = true)]
async fn that_nothing_is_carried_is_a_complaint() {
    let mut bench = Bench::new();
    assert_eq!(bench.complaint(Subject::FastPath), None);
    bench.limit(FLANNEL);
    let other = TcxProgram { id: 9, ours: false, another_agents: false };
    let tcx = Tcx { ingress: vec![other], egress: vec![] };
    bench.datapath.state().tcx.insert(FLANNEL, tcx);
    // The device is looked at anew.
    bench.watch.look(&[FLANNEL].into());
    let complaint = bench.complaint(Subject::FastPath).unwrap();
    assert!(complaint.contains("flannel.1: root qdisc tbf"), "{complaint}");
    bench.datapath.state().tcx.clear();
    tokio::time::advance(HOOKS_REST).await;
    bench.settle();
    assert_eq!(bench.complaint(Subject::FastPath), None, "one way is carried");
}

#[tokio::test(start_paused = true)]
async fn packets_that_come_by_no_hook_are_a_complaint() {
    let mut bench = Bench::new();
    bench.kernel.state().received.insert(FLANNEL, 100);
    pause(6000).await;
    bench.settle();
    bench.kernel.state().received.insert(FLANNEL, 150);
    bench.settle();
    assert_eq!(bench.complaint(Subject::FastPath), None, "the device is asked now and then");
    pause(6000).await;
    bench.settle();
    let complaint = bench.complaint(Subject::FastPath).unwrap();
    assert!(complaint.contains("50 packets") && complaint.contains("eth0"), "{complaint}");
    bench.datapath.state().seen_from_underlay = 1;
    bench.settle();
    assert_eq!(bench.complaint(Subject::FastPath), None);
}

#[test]
fn a_node_whose_pods_have_no_veths_carries_nothing() {
    let mut bench = Bench::new();
    bench.links.retain(|link| link.ifindex != VETH0);
    bench.settle();
    assert_eq!(bench.complaint(Subject::FastPath), None, "no pods yet");
    bench.links.push(link(9, "nk0", "netkit"));
    bench.settle();
    let complaint = bench.complaint(Subject::FastPath).unwrap();
    assert!(complaint.contains("netkit on nk0"), "{complaint}");
}
