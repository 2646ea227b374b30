//! What the daemon tells, or what it left behind; and the peers by the store.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use flannel_core::backend::Reaches;
use flannel_core::check::facts::{Agent, Capabilities, Held, Known, Network, Unknown, Whose};
use flannel_core::envelope::EnvelopeReport;
use flannel_core::lease::Lease;
use flannel_core::mac::MacAddr;
use flannel_core::status::{DatapathKind, PeerStatus, Status};
use ipnetwork::Ipv4Network;
use serde::de::DeserializeOwned;

use super::settings::{self, UnitSettings};
use super::{ask, complain};
use crate::cli::Options;
use crate::control::Request;
use crate::files::state::{self, NodeState};
use crate::source::LeaseSource as _;
use crate::source::options::{EtcdApi, EtcdOptions};
use crate::source::store::Store;

/// How long etcd may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of the daemon and its network.
pub(super) struct Daemon {
    pub(super) agent: Known<Agent>,
    pub(super) pid: Option<i32>,
    pub(super) network: Option<Network>,
    pub(super) public_ip: Option<Ipv4Addr>,
    pub(super) peers: Vec<KnownPeer>,
    pub(super) left: Option<NodeState>,
    /// Its flags.
    pub(super) flags: Option<Options>,
    /// What its unit says, where none runs.
    pub(super) unit: Option<UnitSettings>,
    /// What it leaves to the kernel, and why.
    pub(super) report: Option<EnvelopeReport>,
}

/// A peer as the daemon knows it.
#[derive(Clone, Copy)]
pub(super) struct KnownPeer {
    pub(super) subnet: Ipv4Network,
    pub(super) public_ip: Ipv4Addr,
    /// Reached without a tunnel.
    pub(super) direct: bool,
    /// It has an address on the overlay.
    pub(super) vtep: bool,
    /// MAC of its VTEP.
    pub(super) vtep_mac: Option<MacAddr>,
}

impl Daemon {
    pub(super) fn ask(state_dir: &Path) -> Self {
        let left = state::load(state_dir).state;
        let answer: Known<Option<Status>> = told(state_dir, Request::Status);
        let agent = match &answer {
            Ok(Some(status)) => Ok(running(status)),
            Ok(None) => Ok(Agent::Dead { remembered: left.is_some() }),
            Err(reason) => Err(reason.clone()),
        };
        let status = answer.ok().flatten();
        let leased = status.as_ref().and_then(|status| status.lease.as_ref());
        let pid = status.as_ref().and_then(|status| status.pid.try_into().ok());
        let peers: Vec<PeerStatus> =
            told(state_dir, Request::Peers).ok().flatten().unwrap_or_default();
        Self {
            agent,
            pid,
            flags: pid.and_then(settings::of),
            unit: if pid.is_none() { settings::of_unit() } else { None },
            network: network(status.as_ref(), left.as_ref()),
            public_ip: leased
                .map(|lease| lease.public_ip)
                .or(left.as_ref().map(|left| left.public_ip)),
            peers: peers.iter().map(KnownPeer::of).collect(),
            left,
            report: status.map(|status| status.datapath.envelope),
        }
    }

    /// How etcd is asked: by these flags as far as they were given, else as the daemon does,
    /// or as its unit says where none runs.
    pub(super) fn etcd(&self, own: &EtcdOptions) -> (EtcdOptions, EtcdApi) {
        match self.flags.as_ref().or(self.unit.as_ref().map(|unit| &unit.flags)) {
            Some(flags) => (own.over(&flags.etcd), flags.etcd_api),
            None => (own.clone(), EtcdApi::Auto),
        }
    }

    /// Where the settings are from by which etcd is asked, if not from the daemon.
    pub(super) fn etcd_settings(&self) -> Option<&str> {
        self.unit.as_ref().map(|unit| unit.from.as_str())
    }

    /// Where its pins are, as far as it wrote that down.
    pub(super) fn pin_dir(&self, own: &Path) -> PathBuf {
        let known = self.left.as_ref().and_then(|left| left.pin_dir.clone());
        known.unwrap_or_else(|| own.to_owned())
    }

    /// The same of subnet.env.
    pub(super) fn subnet_file(&self, own: &Path) -> PathBuf {
        let known = self.left.as_ref().and_then(|left| left.subnet_file.clone());
        known.unwrap_or_else(|| own.to_owned())
    }

    /// Its data path, if it tells.
    pub(super) fn datapath(&self) -> Option<String> {
        match &self.agent {
            Ok(Agent::Running { datapath, .. }) => Some(datapath.clone()),
            _ => None,
        }
    }

    /// The peers, by the leases where no daemon tells.
    pub(super) fn peers_or(&self, leases: &[Held]) -> Vec<KnownPeer> {
        if self.pid.is_some() {
            return self.peers.clone();
        }
        let others = leases.iter().filter(|lease| Some(lease.public_ip) != self.public_ip);
        let peer = |lease: &Held| KnownPeer {
            subnet: lease.subnet,
            public_ip: lease.public_ip,
            direct: lease.vtep_mac.is_none(),
            vtep: lease.vtep_mac.is_some(),
            vtep_mac: lease.vtep_mac,
        };
        others.map(peer).collect()
    }

    /// What the daemon may do, or we where none runs.
    pub(super) fn capabilities(&self) -> Known<Capabilities> {
        let whose = if self.pid.is_some() { Whose::Daemons } else { Whose::Ours };
        let all = caps::read(self.pid, CapSet::Effective).map_err(Unknown::because)?;
        let has = |all: &CapsHashSet, wanted: &[Capability]| {
            wanted.iter().all(|capability| all.contains(capability))
        };
        Ok(Capabilities {
            whose,
            net_admin: has(&all, &[Capability::CAP_NET_ADMIN]),
            net_raw: has(&all, &[Capability::CAP_NET_RAW]),
            bpf: has(&all, &[Capability::CAP_BPF, Capability::CAP_PERFMON])
                || has(&all, &[Capability::CAP_SYS_ADMIN]),
        })
    }
}

/// The peers by the store, of which nobody else tells. Says on stderr whose settings count.
pub(super) async fn leases(daemon: &Daemon, etcd: &EtcdOptions) -> Known<Vec<KnownPeer>> {
    if let Some(from) = daemon.etcd_settings() {
        complain(&format!("no daemon runs: etcd is asked with the settings of {from}"));
    }
    let (etcd, api) = daemon.etcd(etcd);
    let store = Store::connect(etcd, api).await.map_err(Unknown::because)?;
    let listed = async {
        store.config().await?;
        store.list().await
    };
    match tokio::time::timeout(PATIENCE, listed).await {
        Ok(Ok((leases, _))) => Ok(daemon.peers_or(&leases.iter().map(held).collect::<Vec<_>>())),
        Ok(Err(error)) => Err(Unknown::because(error)),
        Err(_) => Err(Unknown::because(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

/// What matters of a lease here.
pub(super) fn held(lease: &Lease) -> Held {
    Held {
        subnet: lease.subnet,
        public_ip: lease.attrs.public_ip,
        vtep_mac: lease.attrs.vtep().ok().map(|vtep| vtep.vtep_mac),
    }
}

/// What the daemon answers; `None` if none runs.
fn told<T: DeserializeOwned>(state_dir: &Path, request: Request) -> Known<Option<T>> {
    match ask(state_dir, request).map_err(Unknown::because)? {
        Some(answer) => serde_json::from_str(&answer).map(Some).map_err(Unknown::because),
        None => Ok(None),
    }
}

fn running(status: &Status) -> Agent {
    let mode = status.datapath.mode.map_or("not chosen yet", DatapathKind::text);
    Agent::Running {
        leased: status.lease.is_some(),
        datapath: mode.to_owned(),
        reason: status.datapath.reason.clone(),
        complaints: status
            .health
            .iter()
            .map(|line| format!("{}: {}", line.what, line.reason))
            .chain(status.ignored.iter().map(|lease| format!("left out: {lease}")))
            .collect(),
    }
}

fn network(status: Option<&Status>, left: Option<&NodeState>) -> Option<Network> {
    let device = status.and_then(|status| status.device.as_ref());
    let lease = status.and_then(|status| status.lease.as_ref());
    Some(Network {
        network: left.and_then(|left| left.network),
        subnet: lease.map(|lease| lease.subnet).or(left.map(|left| left.subnet))?,
        device: device.map(|device| device.name.clone()).or_else(|| left?.device.clone()),
        mtu: device.map(|device| device.mtu),
    })
}

impl KnownPeer {
    fn of(told: &PeerStatus) -> Self {
        let reaches = told.path.reaches();
        Self {
            subnet: told.subnet,
            public_ip: told.public_ip,
            direct: reaches.directly(),
            vtep: told.vtep_mac.is_some() || reaches == Reaches::Process,
            vtep_mac: told.vtep_mac,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_left_out_is_a_complaint() {
        let why = "lease 10.9.1.0-24 is not used";
        let status = Status { ignored: vec![why.to_owned()], ..Status::default() };
        let Agent::Running { leased, complaints, .. } = running(&status) else {
            panic!("it runs");
        };
        assert!(!leased, "this status has no lease");
        assert_eq!(complaints, [format!("left out: {why}")]);
    }
}
