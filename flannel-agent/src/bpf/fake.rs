//! A data path in memory, for tests of what drives one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_ebpf::abi::Exemption;
use ipnetwork::Ipv4Network;

use super::{
    BpfError, Datapath, DatapathConfig, HookReport, PeerCounters, Places, PodVeth, Stranger,
    XdpStatus,
};
use crate::desired::Peer;

/// State of a [`FakeDatapath`], open to tests.
#[derive(Debug, Default)]
pub struct State {
    /// The last settings.
    pub config: Option<DatapathConfig>,
    /// How often the generation was raised.
    pub generation: u32,
    /// The maps.
    pub peers: BTreeMap<Ipv4Network, Peer>,
    /// Peers that are reached without a tunnel.
    pub direct: BTreeSet<Ipv4Network>,
    /// What the fast path never carries.
    pub exemptions: Vec<Exemption>,
    /// Overlay device of the last [`Datapath::ensure_hooks`].
    pub overlay: Option<String>,
    /// Veths of the last [`Datapath::ensure_hooks`].
    pub veths: Vec<PodVeth>,
    /// How often hooks were ensured.
    pub ensured: u32,
    /// `<interface>/<program>` or interface names whose hooks fail.
    pub failing_hooks: Vec<String>,
    /// What is said of XDP.
    pub xdp: XdpStatus,
    /// Entries made in the flow table.
    pub flows_entered: u64,
    /// Senders under foreign addresses.
    pub strangers: Vec<Stranger>,
    /// Map writes fail.
    pub maps_fail: bool,
}

/// A data path that remembers.
#[derive(Clone, Debug, Default)]
pub struct FakeDatapath(Arc<Mutex<State>>);

impl FakeDatapath {
    /// Its state, to prepare or to look at.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> Result<MutexGuard<'_, State>, BpfError> {
        let state = self.state();
        if state.maps_fail {
            Err(BpfError::plain("write map", "all", "told to fail"))
        } else {
            Ok(state)
        }
    }
}

impl Datapath for FakeDatapath {
    fn configure(&mut self, config: &DatapathConfig) -> Result<(), BpfError> {
        self.state().config = Some(config.clone());
        Ok(())
    }

    fn raise_generation(&mut self) -> Result<(), BpfError> {
        self.state().generation += 1;
        Ok(())
    }

    fn peers(&self) -> Result<BTreeMap<Ipv4Network, Peer>, BpfError> {
        Ok(self.state().peers.clone())
    }

    fn put_peers(&mut self, peers: &[Peer]) -> Result<(), BpfError> {
        self.writing()?.peers.extend(peers.iter().map(|peer| (peer.subnet, *peer)));
        Ok(())
    }

    fn remove_peers(&mut self, subnets: &[Ipv4Network]) -> Result<(), BpfError> {
        self.writing()?.peers.retain(|subnet, _| !subnets.contains(subnet));
        Ok(())
    }

    fn set_direct(&mut self, subnets: &BTreeSet<Ipv4Network>) -> Result<(), BpfError> {
        if self.state().direct != *subnets {
            self.writing()?.direct.clone_from(subnets);
        }
        Ok(())
    }

    fn exempt(&mut self, exemptions: &[Exemption]) -> Result<(), BpfError> {
        if self.state().exemptions != exemptions {
            self.writing()?.exemptions = exemptions.to_vec();
            self.raise_generation()?;
        }
        Ok(())
    }

    fn ensure_hooks(&mut self, places: Places<'_>) -> HookReport {
        let mut state = self.state();
        state.overlay = places.overlay.map(str::to_owned);
        state.veths = places.veths.to_vec();
        state.ensured += 1;
        let failed = state
            .failing_hooks
            .iter()
            .map(|hook| (hook.clone(), BpfError::plain("attach", hook.clone(), "told to fail")))
            .collect();
        HookReport { attached: Vec::new(), failed }
    }

    fn outcomes(&self) -> Result<BTreeMap<&'static str, u64>, BpfError> {
        Ok(BTreeMap::new())
    }

    fn flows_entered(&self) -> Result<u64, BpfError> {
        Ok(self.state().flows_entered)
    }

    fn peer_counters(&self) -> Result<BTreeMap<Ipv4Network, PeerCounters>, BpfError> {
        Ok(BTreeMap::new())
    }

    fn strangers(&self, _: std::time::Duration) -> Result<Vec<Stranger>, BpfError> {
        Ok(self.state().strangers.clone())
    }

    fn describe(&self) -> String {
        "fake".to_owned()
    }

    fn xdp(&self) -> XdpStatus {
        self.state().xdp.clone()
    }

    fn unpinned(&self) -> Option<String> {
        None
    }
}
