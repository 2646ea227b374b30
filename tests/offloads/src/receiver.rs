//! What the receiving pod is made to do.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::device;
use flannel_tests::assembled;
use flannel_tests::netns::Netns;
use flannel_tests::packet::Wire;
use flannel_tests::pair::Pair;
use flannel_tests::pod::{self, PORT};
use flannel_tests::process::Process;

/// A namespace behind the pod `server`, which routes to it.
pub struct Behind {
    // In the order in which they have to go.
    _server: Process,
    _relay: Option<Relay>,
    /// The namespace.
    pub netns: Netns,
    /// Its traffic server.
    pub target: SocketAddrV4,
}

impl Behind {
    /// Joined to the pod by a veth that takes no aggregates: they are cut in
    /// the pod.
    ///
    /// # Panics
    /// A command fails.
    pub fn veth(pair: &Pair) -> Self {
        let (pod, mtu) = (&pair.server.netns, pair.right.mtu());
        let netns = Netns::new(&format!("{}-b", pod.name()));
        pod.ip(&format!(
            "link add inner mtu {mtu} type veth peer name inner mtu {mtu} netns {}",
            netns.name()
        ));
        for end in [pod, &netns] {
            device::cut(end, "inner");
        }
        Self::new(pair, netns, 77, None)
    }

    /// As a virtual machine in the pod: behind a TUN device with offloads, whose
    /// other end is in a process.
    ///
    /// # Panics
    /// A command fails.
    pub fn machine(pair: &Pair) -> Self {
        let pod = &pair.server.netns;
        let netns = Netns::new(&format!("{}-m", pod.name()));
        let relay = Relay::start([pod, &netns], "machine");
        for end in [pod, &netns] {
            end.ip(&format!("link set machine mtu {}", pair.right.mtu()));
        }
        Self::new(pair, netns, 78, Some(relay))
    }

    /// Gives the namespace, whose device has the same name as the pod's end,
    /// address number `host` of the node's subnet.
    fn new(pair: &Pair, netns: Netns, host: u32, relay: Option<Relay>) -> Self {
        let (pod, node) = (&pair.server, &pair.right);
        let address = node.subnet().nth(host).expect("an address of the subnet");
        let device = if relay.is_some() { "machine" } else { "inner" };
        pod.netns.ip_batch(&[
            format!("link set {device} up"),
            format!("route add {address}/32 dev {device}"),
        ]);
        netns.ip_batch(&[
            format!("address add {address}/32 dev {device}"),
            format!("link set {device} up"),
            // The pod's own address is its gateway.
            format!("route add {} dev {device}", pod.address),
            format!("route add default via {} dev {device}", pod.address),
        ]);
        pod.netns.sysctl("net.ipv4.ip_forward=1");
        node.netns.ip(&format!("route add {address}/32 via {} dev cni0", pod.address));
        let log = pair.lab.dir().join(format!("{device}.log"));
        let server = pod::serve(&netns, &log, &[]);
        Self { _server: server, _relay: relay, netns, target: SocketAddrV4::new(address, PORT) }
    }
}

/// Two TUN devices of one name, and what carries packets and aggregates from
/// one to the other.
struct Relay {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    fn start(places: [&Netns; 2], name: &str) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let open = |netns: &Netns| {
            netns.inside(|| {
                let builder = DeviceBuilder::new().name(name).layer(Layer::L3).offload(true);
                Arc::new(builder.build_sync().expect("a TUN device"))
            })
        };
        let [one, other] = places.map(open);
        let threads = [(one.clone(), other.clone()), (other, one)].map(|(from, to)| {
            let end = end.clone();
            thread::spawn(move || relay(&from, &to, &end))
        });
        Self { end, threads: threads.into() }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been printed, and shows as loss.
            let _ = thread.join();
        }
    }
}

/// Packets pass with their header of offloads, as the kernel wrote it.
fn relay(from: &SyncDevice, to: &SyncDevice, end: &AtomicBool) {
    let mut packet = vec![0; 70_000];
    let pause = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !end.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(from, PollFlags::IN)];
        if poll(&mut ready, Some(&pause)).is_ok_and(|count| count > 0)
            && let Ok(length) = rustix::io::read(from, &mut packet)
        {
            // What the kernel does not take is lost, as on a wire.
            let _ = rustix::io::write(to, &packet[..length]);
        }
    }
}

/// An AF_PACKET socket in a pod, which sees what comes to it.
pub struct Capture(Wire);

impl Capture {
    /// Opens it.
    pub fn open(netns: &Netns) -> Self {
        Self(Wire::open(netns, "eth0"))
    }

    /// What it saw: the largest frame in bytes (cut off at 70,000), and the
    /// first whose IPv4 length is not its own.
    pub fn end(self) -> (usize, Option<String>) {
        let (mut largest, mut wrong) = (0, None);
        self.0.waiting(|frame| {
            largest = largest.max(frame.len());
            // Beyond 64 KiB the header says 0.
            if frame.len() > 65_535 + 14 || frame.len() < 34 || frame[12..14] != [8, 0] {
                return;
            }
            let said = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            if said + 14 != frame.len() && wrong.is_none() {
                wrong = Some(format!("in the pod: length {said} of {}", frame.len() - 14));
            }
        });
        (largest, wrong)
    }
}

/// An XDP program that passes everything, on `eth0` of a namespace until it is
/// dropped.
pub struct Passing {
    _ebpf: Ebpf,
}

impl Passing {
    /// Loads and attaches it, in the driver's own mode.
    ///
    /// # Panics
    /// The kernel refuses it.
    pub fn attach(netns: &Netns) -> Self {
        netns.inside(|| {
            let object = assembled::object("xdp", "pass", &[assembled::answer(2), assembled::EXIT]);
            let mut ebpf = EbpfLoader::new().load(&object).expect("an object with XDP_PASS");
            let program: &mut Xdp =
                ebpf.program_mut("pass").expect("the program").try_into().expect("an XDP program");
            program.load().expect("load XDP_PASS");
            program.attach("eth0", XdpMode::Driver).expect("attach XDP_PASS to eth0");
            Self { _ebpf: ebpf }
        })
    }
}
