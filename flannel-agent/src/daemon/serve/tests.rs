//! The loop over fakes, in paused time: what it does when the store, the
//! kernel or the underlay changes, and what it leaves alone.

use std::ffi::OsString;
use std::path::PathBuf;

use flannel_core::config::NetworkConfig;
use flannel_core::envelope::Inward;
use flannel_core::envelope::TrafficControl;
use flannel_core::health::{About, Subject};
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::link::{Link, RouteTo};
use flannel_core::mac::MacAddr;
use flannel_core::op::Op;
use flannel_core::state::Traces;
use flannel_core::underlay::Underlay;
use ipnetwork::Ipv4Network;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use flannel_core::schedule::HOOKS;

use super::*;
use crate::bpf::fake::FakeDatapath;
use crate::daemon::settings;
use crate::datapath::Opened;
use crate::files::state;
use crate::firewall::fake::FakeFirewall;
use crate::kernel::fake::{self, FakeKernel};
use crate::kernel::sysctl::Sysctl;
use crate::reconcile::{Identity, conntrack};
use crate::source::Claim;
use crate::source::fake::{Call, FakeSource, Write};
use crate::status::{SharedDatapath, lock};

mod ended;
mod leases;
mod opening;
mod others;
mod traces;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const OVERLAY: u32 = 3;

struct Bench {
    source: FakeSource,
    kernel: FakeKernel,
    datapath: FakeDatapath,
    shared: Shared,
    events: mpsc::Sender<KernelEvent>,
    own: Lease,
    task: JoinHandle<Result<(), StartError>>,
    dir: tempfile::TempDir,
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn attrs(number: u8) -> LeaseAttrs {
    LeaseAttrs::vxlan(address(number), 1, MacAddr([2, 0, 0, 0, 0, number]))
}

/// The lease of peer `number`, 10.5.(100 + number).0/24.
fn lease(number: u8) -> Lease {
    let subnet = Ipv4Network::new(Ipv4Addr::new(10, 5, 100 + number, 0), 24).unwrap();
    Lease { subnet, attrs: attrs(number), expires: None, revision: 0 }
}

fn link(ifindex: u32, name: &str, kind: &str, addresses: &[Ipv4Addr]) -> Link {
    let network = |address: &Ipv4Addr| Ipv4Network::new(*address, 24).unwrap();
    let networks: Vec<Ipv4Network> = addresses.iter().map(network).collect();
    fake::link(ifindex, name, kind, &networks)
}

fn sysctls(root: PathBuf) -> Sysctl {
    fake::write_sysctls(&root).unwrap();
    Sysctl::at(root)
}

fn options(dir: &std::path::Path, flags: &[&str]) -> Options {
    let mut words = vec![
        "flannel-agent".to_owned(),
        format!("--state-dir={}", dir.join("state").display()),
        format!("--subnet-file={}", dir.join("subnet.env").display()),
    ];
    words.extend(flags.iter().copied().map(str::to_owned));
    crate::cli::parse(words.into_iter().map(OsString::from), |_| None).unwrap().0.daemon
}

impl Bench {
    /// The same, whose data path is there when `opens` has told it.
    async fn start_before(opens: oneshot::Receiver<Result<(), Demanded>>) -> Self {
        let bench = Self::begin(CONFIG, &[2, 3], &[], Some(opens), Traces::default()).await;
        bench.settle().await;
        bench
    }

    /// A node 192.0.2.1 with these peers, after its first pass.
    async fn start(peers: &[u8]) -> Self {
        Self::start_with(CONFIG, peers).await
    }

    /// The same with another network config; nobody is on the link.
    async fn start_with(config: &str, peers: &[u8]) -> Self {
        Self::start_flagged(config, peers, &[]).await
    }

    async fn start_flagged(config: &str, peers: &[u8], flags: &[&str]) -> Self {
        let bench = Self::begin(config, peers, flags, None, Traces::default()).await;
        bench.settle().await;
        assert!(!bench.task.is_finished(), "the loop has ended");
        bench
    }

    /// The same, of which nothing has run yet, where earlier runs left these traces.
    async fn begin(
        config: &str,
        peers: &[u8],
        flags: &[&str],
        opens: Option<oneshot::Receiver<Result<(), Demanded>>>,
        traces: Traces,
    ) -> Self {
        let config = NetworkConfig::parse(config).unwrap();
        let source = FakeSource::new(config.clone());
        let claim = Claim::new(attrs(1), None);
        let own = source.acquire(&config, &claim).await.unwrap();
        peers.iter().for_each(|peer| source.put(lease(*peer)));
        let kernel = FakeKernel::default();
        kernel.state().links =
            vec![link(2, "eth0", "", &[address(1)]), link(7, "veth0", "veth", &[])];
        let route = RouteTo { ifindex: 2, source: None, gateway: None };
        kernel.state().defaults.push(route);
        let dir = tempfile::tempdir().unwrap();
        let datapath = FakeDatapath::default();
        let slot = SharedDatapath::default();
        let shared = Shared::default();
        let opening = opens.map(|opens| {
            let loaded = Box::new(datapath.clone());
            let open = async { opens.await.unwrap().map(|()| Opened::Ebpf(loaded)) };
            let slot = SharedDatapath::clone(&slot);
            Opening::of(tokio::spawn(open), config.clone(), shared.clone(), slot)
        });
        if opening.is_none() {
            *lock(&slot) = Some(Box::new(datapath.clone()));
        }
        let identity = Identity {
            subnet: own.subnet,
            network: config.network,
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            underlay: Underlay {
                mac: None,
                ifindex: 2,
                name: "eth0".to_owned(),
                address: address(1),
                public_ip: address(1),
                mtu: 1500,
                ethernet: true,
            },
            backend: config.backend.clone(),
        };
        let options = options(dir.path(), flags);
        let settings = settings(&options, options.underlay.clone());
        let reconciler = Reconciler::new(
            kernel.clone(),
            FakeFirewall::default(),
            slot,
            shared.clone(),
            sysctls(dir.path().join("sysctl")),
            settings,
            identity,
        )
        .with_traces(traces);
        let (events, events_end) = mpsc::channel(16);
        let (store, lease, told) = (Arc::new(source.clone()), own.clone(), shared.clone());
        let task = tokio::spawn(async move {
            let mut locked = StateLock::take(&options.state_dir).expect("the lock");
            Loop::new(&options, &mut locked, store, lease, reconciler, told)
                .run(events_end, opening)
                .await
        });
        Self { source, kernel, datapath, shared, events, own, task, dir }
    }

    /// Lets everything happen that is due within a second.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    async fn tell(&self, event: KernelEvent) {
        self.events.send(event).await.unwrap();
        self.settle().await;
    }

    fn subnets(&self) -> Vec<Ipv4Network> {
        let state = self.kernel.state();
        let Some(observed) = state.devices.get("flannel.1") else { return Vec::new() };
        observed.routes.iter().map(|route| route.destination).collect()
    }

    fn take_applied(&self) -> Vec<Op> {
        std::mem::take(&mut self.kernel.state().applied)
    }

    fn complaint(&self, what: impl Into<About>) -> Option<String> {
        self.shared.lock().health.reason(what).map(str::to_owned)
    }

    fn stands(&self) -> Option<LeaseAttrs> {
        self.source.lease(self.own.subnet).map(|lease| lease.attrs)
    }

    fn renewals(&self) -> usize {
        self.source.writes().iter().filter(|write| matches!(write, Write::Renewed(_))).count()
    }

    fn passes(&self) -> u32 {
        self.datapath.state().ensured
    }

    fn generation(&self) -> u32 {
        self.datapath.state().generation
    }
}

#[tokio::test(start_paused = true)]
async fn the_start_programs_the_peers_and_writes_the_files() {
    let bench = Bench::start(&[2, 3]).await;
    assert_eq!(bench.subnets(), [lease(2).subnet, lease(3).subnet]);
    assert_eq!(bench.datapath.state().peers.len(), 2);
    let env = std::fs::read_to_string(bench.dir.path().join("subnet.env")).unwrap();
    assert_eq!(
        env,
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\n\
         FLANNEL_IPMASQ=false\n"
    );
    let state = state::load(&bench.dir.path().join("state")).state.unwrap();
    assert_eq!(state.subnet, bench.own.subnet);
    assert_eq!(state.traces.sysctls[conntrack::LIBERAL], "0", "for cleanup");
    assert_eq!(bench.shared.lock().complaints(), []);
    assert_eq!(bench.renewals(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_route_event_moves_a_peer_out_of_the_tunnel_and_back() {
    let config = CONFIG.replace(r#""vxlan""#, r#""vxlan","DirectRouting":true"#);
    let bench = Bench::start_with(&config, &[2, 3]).await;
    assert_eq!(bench.subnets(), [lease(2).subnet, lease(3).subnet]);
    let on_link = RouteTo { ifindex: 2, source: None, gateway: None };
    let before = bench.generation();
    bench.kernel.state().routes.insert(address(2), on_link);
    bench.tell(KernelEvent::Route { ifindex: 9 }).await;
    assert_eq!(bench.subnets(), [lease(3).subnet]);
    let direct: Vec<_> = bench.kernel.state().direct.iter().map(|r| r.destination).collect();
    assert_eq!(direct, [lease(2).subnet]);
    assert!(bench.generation() > before, "confirmed flows go through the kernel anew");
    bench.take_applied();
    bench.tell(KernelEvent::Route { ifindex: 2 }).await;
    assert_eq!(bench.take_applied(), [], "events of our own changes settle");
    bench.kernel.state().routes.remove(&address(2));
    bench.tell(KernelEvent::Link { ifindex: 2 }).await;
    assert_eq!(bench.subnets(), [lease(2).subnet, lease(3).subnet]);
    assert!(bench.kernel.state().direct.is_empty());
}

#[tokio::test(start_paused = true)]
async fn peers_come_move_and_go() {
    let bench = Bench::start(&[]).await;
    let before = bench.generation();
    bench.source.put(lease(2));
    bench.settle().await;
    assert_eq!(bench.subnets(), [lease(2).subnet]);
    assert!(bench.generation() > before);
    bench.source.put(Lease { attrs: attrs(9), ..lease(2) });
    bench.settle().await;
    let fdb = bench.kernel.state().devices["flannel.1"].fdb.clone();
    assert_eq!(fdb, [(MacAddr([2, 0, 0, 0, 0, 9]), address(9))].into());
    bench.source.remove(lease(2).subnet);
    bench.settle().await;
    assert_eq!(bench.subnets(), []);
    assert_eq!(bench.datapath.state().peers.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_comes_alone_waits_for_no_timer() {
    let bench = Bench::start(&[]).await;
    // Timers count whole milliseconds.
    tokio::time::advance(Duration::from_micros(300)).await;
    bench.source.put(lease(2));
    let before = Instant::now();
    // Time goes on only where everybody waits.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(before, Instant::now());
    assert_eq!(bench.subnets(), [lease(2).subnet]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_changes_nothing_costs_nothing() {
    let bench = Bench::start(&[2, 3]).await;
    bench.take_applied();
    let (generation, looks) = (bench.generation(), bench.kernel.state().looks);
    for _ in 0..100 {
        bench.source.put(lease(2));
    }
    bench.settle().await;
    assert_eq!(bench.take_applied(), []);
    assert_eq!((bench.generation(), bench.kernel.state().looks), (generation, looks));
}

#[tokio::test(start_paused = true)]
async fn a_lost_store_keeps_the_peers() {
    let bench = Bench::start(&[2, 3]).await;
    let reason = "192.0.2.250:2379: connection refused".to_owned();
    bench.source.push(LeaseUpdate::Disconnected { reason: reason.clone() });
    bench.settle().await;
    assert_eq!(bench.subnets().len(), 2);
    {
        let state = bench.shared.lock();
        assert!(!state.store.connected);
        assert_eq!(state.store.detail.as_ref(), Some(&reason));
    }
    bench.source.push_snapshot();
    bench.settle().await;
    assert!(bench.shared.lock().store.connected);
    assert_eq!(bench.complaint(Subject::Store), None);
    assert_eq!(bench.renewals(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_lease_follows_the_address_of_the_underlay() {
    let bench = Bench::start(&[2]).await;
    bench.kernel.state().links[0].addresses.clear();
    bench.tell(KernelEvent::Address { ifindex: 2 }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.stands().unwrap().public_ip, address(1), "it may come back");
    bench.kernel.state().links[0].addresses = link(2, "eth0", "", &[address(50)]).addresses;
    bench.tell(KernelEvent::Address { ifindex: 2 }).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.complaint(Subject::LostLease), None);
    assert_eq!(bench.stands().unwrap().public_ip, address(50));
    assert_eq!(bench.source.looks(), 2, "connections may begin at an address that has gone");
    assert_eq!(bench.shared.lock().lease.as_ref().unwrap().attrs.public_ip, address(50));
    let device = bench.kernel.state().devices["flannel.1"].device.clone().unwrap();
    assert_eq!(device.vxlan.unwrap().local, Some(address(50)));
    assert_eq!(device.mac, MacAddr([2, 0, 0, 0, 0, 1]));
    assert_eq!(bench.subnets(), [lease(2).subnet]);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_device_comes_back_with_its_mac_and_all_peers() {
    let bench = Bench::start(&[2, 3]).await;
    bench.kernel.state().devices.clear();
    bench.tell(KernelEvent::Link { ifindex: OVERLAY }).await;
    assert_eq!(bench.subnets(), [lease(2).subnet, lease(3).subnet]);
    let device = bench.kernel.state().devices["flannel.1"].device.clone().unwrap();
    assert_eq!(device.mac, MacAddr([2, 0, 0, 0, 0, 1]));
}

#[tokio::test(start_paused = true)]
async fn a_failing_peer_is_retried_stops_nobody_and_is_forgotten_when_it_leaves() {
    let bench = Bench::start(&[]).await;
    let failing = Op::PutRoute(lease(2).subnet);
    bench.kernel.state().failing.push((failing, libc::ENETUNREACH));
    bench.source.put(lease(2));
    bench.source.put(lease(3));
    bench.settle().await;
    assert_eq!(bench.subnets(), [lease(3).subnet]);
    let subject = About::peer(lease(2).subnet);
    assert!(bench.complaint(subject.clone()).unwrap().contains("unreachable"));
    let passes = bench.passes();
    tokio::time::sleep(Duration::from_secs(60)).await;
    // Hooks are looked after all the time anyway.
    let hooks = (60_000 / HOOKS.as_millis()) as u32;
    let retries = 60 / 2;
    assert!(bench.passes() - passes < hooks + retries, "{} passes", bench.passes() - passes);
    bench.source.remove(lease(2).subnet);
    bench.settle().await;
    assert_eq!(bench.complaint(subject.clone()), None);
    let passes = bench.passes();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.passes() - passes <= hooks + 2, "{} passes", bench.passes() - passes);
    // And one that works at last.
    bench.source.put(lease(2));
    bench.settle().await;
    bench.kernel.state().failing.clear();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bench.subnets().len(), 2);
    assert_eq!(bench.complaint(subject.clone()), None);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_is_repeated() {
    let bench = Bench::start(&[2]).await;
    bench.kernel.state().devices.clear();
    bench.kernel.state().fail_next_read = Some(libc::EBUSY);
    bench.tell(KernelEvent::Neighbour { ifindex: OVERLAY }).await;
    assert_eq!(bench.subnets(), [lease(2).subnet]);
    assert_eq!(bench.shared.lock().complaints(), []);
    assert_eq!(bench.datapath.state().veths.len(), 1, "pods kept their hooks");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_is_served_and_ends_nothing() {
    let bench = Bench::start(&[]).await;
    let generation = bench.generation();
    bench.kernel.state().links.push(link(9, "veth1", "veth", &[]));
    bench.tell(KernelEvent::Link { ifindex: 9 }).await;
    assert_eq!(bench.datapath.state().veths.len(), 2);
    assert_eq!(bench.generation(), generation);
    bench.tell(KernelEvent::Decision).await;
    assert_eq!(bench.generation(), generation + 1);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_routes_lead_out_of_is_no_pods() {
    let bench = Bench::start(&[]).await;
    bench.kernel.state().links.push(link(9, "eth1", "veth", &[]));
    bench.tell(KernelEvent::Link { ifindex: 9 }).await;
    assert!(bench.datapath.state().hooked.contains(&9), "nothing else is known of it");
    bench.kernel.state().uplinks.insert(9);
    bench.tell(KernelEvent::Route { ifindex: 9 }).await;
    assert!(!bench.datapath.state().hooked.contains(&9));
    assert_eq!(bench.datapath.state().inlets[0].name, "eth1");
}

#[tokio::test(start_paused = true)]
async fn traffic_control_is_followed_without_a_pass() {
    let bench = Bench::start(&[]).await;
    let (passes, looks) = (bench.passes(), bench.kernel.state().looks);
    let limited = TrafficControl { root: "tbf".to_owned(), ..TrafficControl::default() };
    bench.kernel.state().traffic.insert(7, limited);
    bench.events.send(KernelEvent::Tc { ifindex: 7 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let entry = bench.datapath.state().veths[0].entry.unwrap();
    assert_eq!(entry.inward, Inward::Egress);
    assert_eq!((bench.passes(), bench.kernel.state().looks), (passes, looks));
    // It stays when the hooks are looked after.
    bench.settle().await;
    assert_eq!(bench.datapath.state().veths[0].entry, Some(entry));
}

#[tokio::test(start_paused = true)]
async fn leases_that_are_left_out_are_told() {
    let bench = Bench::start(&[]).await;
    assert_eq!(bench.shared.lock().ignored, [""; 0]);
    let outside = Ipv4Network::new(Ipv4Addr::new(10, 9, 1, 0), 24).unwrap();
    bench.source.put(Lease { subnet: outside, ..lease(2) });
    bench.settle().await;
    assert!(bench.shared.lock().ignored[0].contains("10.9.1.0-24"));
    assert_eq!(bench.subnets(), []);
    bench.source.remove(outside);
    bench.settle().await;
    assert_eq!(bench.shared.lock().ignored, [""; 0]);
    let unreadable = ("subnets/garbage".to_owned(), "no JSON\n".to_owned());
    bench.source.push(LeaseUpdate::Unreadable { keys: [unreadable].into() });
    bench.settle().await;
    let told = "key subnets/garbage is not used: no JSON\\n";
    assert_eq!(bench.shared.lock().ignored, [told]);
    bench.source.push(LeaseUpdate::Unreadable { keys: Default::default() });
    bench.settle().await;
    assert_eq!(bench.shared.lock().ignored, [""; 0]);
}
