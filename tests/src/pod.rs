//! Pods: a namespace on the node's bridge, as a CNI bridge plugin makes them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::load::{self, Load, RunningLoad};
use crate::netns::Netns;
use crate::node::Node;
use crate::process::{Process, own_program};
use crate::wait;

/// Port of the traffic server in every pod.
pub const PORT: u16 = 7000;

/// A pod. Deleted by `Drop`, and its veth with it.
pub struct Pod {
    /// Its network namespace.
    pub netns: Netns,
    /// Its address on `eth0`.
    pub address: Ipv4Addr,
    /// The host side of its veth, in the node's namespace.
    pub veth: String,
    log: std::path::PathBuf,
    server: Option<Process>,
}

impl Node {
    /// Makes `cni0` with the subnet's first address, if it is not there yet.
    ///
    /// # Panics
    /// The node has no subnet yet.
    pub fn bridge(&self) {
        if self.netns.try_sh("ip link show cni0") {
            return;
        }
        let subnet = self.subnet();
        let gateway = subnet.nth(1).expect("a first address");
        self.netns.ip_batch(&[
            format!("link add cni0 mtu {} type bridge forward_delay 0", self.mtu()),
            format!("address add {gateway}/{} dev cni0", subnet.prefix()),
            "link set cni0 up".into(),
        ]);
    }

    /// Makes a pod with address number `host` of the node's subnet.
    ///
    /// # Panics
    /// The node has no subnet yet.
    pub fn pod(&self, host: u8) -> Pod {
        self.bridge();
        let subnet = self.subnet();
        let gateway = subnet.nth(1).expect("a first address");
        let address = subnet.nth(u32::from(host)).expect("an address of the subnet");
        let netns = Netns::new(&format!("{}-p{host}", self.netns.name()));
        let (veth, mtu) = (format!("veth{host}"), self.mtu());
        self.netns.ip(&format!(
            "link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            netns.name()
        ));
        self.netns.ip(&format!("link set {veth} master cni0 up"));
        netns.ip_batch(&[
            format!("address add {address}/{} dev eth0", subnet.prefix()),
            "link set eth0 up".into(),
            format!("route add default via {gateway}"),
        ]);
        let log = self.dir.join(format!("pod{host}.log"));
        Pod { netns, address, veth, log, server: None }
    }
}

impl Pod {
    /// Its traffic server's address.
    pub fn target(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, PORT)
    }

    /// Starts the traffic server and waits until it listens.
    ///
    /// # Panics
    /// It does not come up.
    pub fn serve(&mut self) -> SocketAddrV4 {
        self.server = Some(serve(&self.netns, &self.log, &[]));
        self.target()
    }

    /// Starts the traffic server again, on one CPU, and waits until it listens.
    ///
    /// # Panics
    /// It does not come up.
    pub fn serve_on(&mut self, cpu: usize) {
        drop(self.server.take());
        self.server = Some(serve(&self.netns, &self.log, &["--cpu", &cpu.to_string()]));
    }

    /// Runs the traffic client to its end.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn traffic<R>(&self, load: Load<R>, to: SocketAddrV4, options: &str) -> R {
        load::traffic(&self.netns, load, to, options)
    }

    /// Starts the traffic client.
    pub fn start_traffic<R>(
        &self,
        load: Load<R>,
        to: SocketAddrV4,
        options: &str,
    ) -> RunningLoad<R> {
        load::start_traffic(&self.netns, load, to, options)
    }

    /// Pings with `options`; all packets have to come back.
    ///
    /// # Panics
    /// One does not.
    #[track_caller]
    pub fn ping(&self, to: Ipv4Addr, options: &str) -> String {
        let (answered, text) = self.netns.ping(to, options);
        assert!(answered, "ping {options} {to} from {}:\n{text}", self.address);
        text
    }
}

/// Starts a traffic server in a namespace and waits until it listens.
///
/// # Panics
/// It does not come up.
pub fn serve(netns: &Netns, log: &std::path::Path, options: &[&str]) -> Process {
    let mut command = netns.command(own_program("flannel-traffic"));
    command.args(["server", "--port", &PORT.to_string()]).args(options);
    let process = Process::start("flannel-traffic server", &mut command, log);
    wait::holds("traffic server", Duration::from_secs(10), || process.log().contains("listening"));
    process
}
