//! Nodes.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnetwork::Ipv4Network;

use crate::netns::Netns;
use crate::program::program;
use crate::root::Root;
use crate::started::Running;

/// A node: a namespace with an address on the underlay, and an agent or a
/// hand-made tunnel in it.
pub struct Node {
    // First, so that the agent ends before its namespace goes.
    pub(crate) agent: Option<Running>,
    /// Its network namespace.
    pub netns: Netns,
    /// Its underlay address, on `eth0`.
    pub address: Ipv4Addr,
    pub(crate) number: u8,
    pub(crate) dir: PathBuf,
    pub(crate) pin_dir: PathBuf,
    pub(crate) plain: Option<Ipv4Network>,
    pub(crate) root: Option<Root>,
    /// Another build of the agent than the one that is tested.
    pub(crate) other_build: Option<PathBuf>,
}

impl Node {
    pub(crate) fn new(
        number: u8,
        netns: Netns,
        address: Ipv4Addr,
        dir: PathBuf,
        pin_dir: PathBuf,
    ) -> Self {
        Self {
            agent: None,
            netns,
            address,
            number,
            dir,
            pin_dir,
            plain: None,
            root: None,
            other_build: None,
        }
    }

    /// Lets another build of the agent run here, from the next start on.
    pub fn use_build(&mut self, program: &Path) {
        self.other_build = Some(program.to_path_buf());
    }

    /// Path of the agent that runs here.
    pub(crate) fn agent_program(&self) -> PathBuf {
        self.other_build.clone().unwrap_or_else(program)
    }

    /// Makes an interface the underlay, with an address of its own. Agents need
    /// `--iface`.
    ///
    /// # Panics
    /// There is no such interface.
    pub fn underlay_on(&mut self, interface: &str) {
        self.address = Ipv4Addr::new(198, 18, 0, 10 + self.number);
        self.netns.ip_batch(&[
            format!("address add {}/24 dev {interface}", self.address),
            format!("link set {interface} up"),
        ]);
    }

    /// `--subnet-file`.
    pub fn subnet_file(&self) -> PathBuf {
        let own = self.root.as_ref().map(|root| root.at("/run/flannel/subnet.env"));
        own.unwrap_or_else(|| self.dir.join("subnet.env"))
    }

    /// `--state-dir`.
    pub fn state_dir(&self) -> PathBuf {
        let own = self.root.as_ref().map(|root| root.at("/var/lib/flannel-ebpf"));
        own.unwrap_or_else(|| self.dir.join("state"))
    }

    /// `--pin-dir`.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// A value of subnet.env, if the file and the value are there.
    pub fn environment(&self, key: &str) -> Option<String> {
        let text = fs::read_to_string(self.subnet_file()).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(str::to_owned)
    }

    /// The node's subnet, host bits zero.
    ///
    /// # Panics
    /// It has none yet.
    #[track_caller]
    pub fn subnet(&self) -> Ipv4Network {
        if let Some(subnet) = self.plain {
            return subnet;
        }
        let text = self.environment("FLANNEL_SUBNET").expect("FLANNEL_SUBNET in subnet.env");
        let network: Ipv4Network = text.parse().expect("FLANNEL_SUBNET");
        Ipv4Network::new(network.network(), network.prefix()).expect("a subnet")
    }

    /// MTU for pods, in bytes.
    pub fn mtu(&self) -> u32 {
        self.environment("FLANNEL_MTU").map_or(1450, |text| text.parse().expect("FLANNEL_MTU"))
    }

    /// MAC of `flannel.1`.
    ///
    /// # Panics
    /// There is no such device.
    #[track_caller]
    pub fn vtep_mac(&self) -> String {
        self.netns.link("flannel.1").address.expect("an address")
    }
}
