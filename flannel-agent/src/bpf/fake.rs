//! A data path in memory, for tests of what drives one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::envelope::{Inlet, Keep, PodVeth, Tcx};
use flannel_core::limits::{Destination, TunnelEnd};
use flannel_core::peer::Peer;
use flannel_core::status::PeerCounters;
use flannel_ebpf::abi::Exemption;
use ipnetwork::Ipv4Network;

use super::{
    Bounded, BpfError, Datapath, DatapathConfig, HookChanges, Meter, Places, Stranger, Teller,
    Which, XdpReport,
};

/// State of a [`FakeDatapath`], open to tests.
#[derive(Debug, Default)]
pub struct State {
    /// The last settings.
    pub config: Option<DatapathConfig>,
    /// How often a sign of life was given.
    pub attended: u32,
    /// The programs know that nobody keeps the maps true.
    pub left: bool,
    /// How often the generation was raised.
    pub generation: u32,
    /// The maps.
    pub peers: BTreeMap<Ipv4Network, Peer>,
    /// Peers that are reached without a tunnel.
    pub direct: BTreeSet<Ipv4Network>,
    /// How large packets to peers may be.
    pub bounds: BTreeMap<Ipv4Network, u16>,
    /// What the fast path never carries.
    pub exemptions: Vec<Exemption>,
    /// Overlay device of the last [`Datapath::ensure_hooks`].
    pub overlay: Option<String>,
    /// Veths as last told.
    pub veths: Vec<PodVeth>,
    /// Veths of the last [`Datapath::ensure_hooks`].
    pub hooked: BTreeSet<u32>,
    /// Inlets of the last [`Datapath::ensure_hooks`].
    pub inlets: Vec<Inlet>,
    /// Ways that are the kernel's.
    pub keep: Keep,
    /// What [`Teller::tcx`] gives, by interface index.
    pub tcx: BTreeMap<u32, Tcx>,
    /// What [`Datapath::seen_from_underlay`] gives.
    pub seen_from_underlay: u64,
    /// How often hooks were ensured.
    pub ensured: u32,
    /// `<interface>/<program>` or interface names whose hooks fail.
    pub failing_hooks: Vec<String>,
    /// What is said of XDP.
    pub xdp: XdpReport,
    /// Entries made in the flow table.
    pub flows_entered: u64,
    /// Senders under foreign addresses.
    pub strangers: Vec<Stranger>,
    /// What [`Datapath::outcomes`] gives.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// What [`Meter::peer_counters`] gives.
    pub peer_counters: BTreeMap<Ipv4Network, PeerCounters>,
    /// What the next [`Datapath::mend`] has put right.
    pub mended: u64,
    /// Why no pins can be made.
    pub pins_refused: Option<String>,
    /// Why there are none, as last seen.
    unpinned: Option<String>,
    /// Map writes fail.
    pub maps_fail: bool,
    /// What only reads counters fails.
    pub counters_fail: bool,
    /// The generation cannot be raised.
    pub generation_fails: bool,
}

/// A data path that remembers.
#[derive(Clone, Debug, Default)]
pub struct FakeDatapath(Arc<Mutex<State>>);

impl FakeDatapath {
    /// Its state, to prepare or to look at.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counting(&self) -> Result<MutexGuard<'_, State>, BpfError> {
        let state = self.state();
        if state.counters_fail {
            Err(BpfError::plain("read map", "counters", "told to fail"))
        } else {
            Ok(state)
        }
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

    fn attend(&mut self) -> Result<(), BpfError> {
        self.writing()?.attended += 1;
        Ok(())
    }

    fn leave(&mut self) -> Result<(), BpfError> {
        self.writing()?.left = true;
        Ok(())
    }

    fn raise_generation(&mut self) -> Result<(), BpfError> {
        let mut state = self.state();
        if state.generation_fails {
            return Err(BpfError::plain("write map", "settings", "told to fail"));
        }
        state.generation += 1;
        Ok(())
    }

    fn peers(&mut self) -> Result<BTreeMap<Ipv4Network, Peer>, BpfError> {
        Ok(self.state().peers.clone())
    }

    fn bounds(&self) -> BTreeMap<Ipv4Network, u16> {
        self.state().bounds.clone()
    }

    fn mend(&mut self) -> Result<u64, BpfError> {
        Ok(std::mem::take(&mut self.writing()?.mended))
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
            Datapath::raise_generation(self)?;
        }
        Ok(())
    }

    fn ensure_hooks(&mut self, places: Places<'_>) -> HookChanges {
        let mut state = self.state();
        state.overlay = places.overlay.map(|overlay| overlay.name.to_owned());
        state.hooked = places.veths.iter().map(|veth| veth.ifindex).collect();
        state.inlets = places.inlets.to_vec();
        state.ensured += 1;
        let failed = state
            .failing_hooks
            .iter()
            .map(|hook| (hook.clone(), BpfError::plain("attach", hook.clone(), "told to fail")))
            .collect();
        HookChanges { failed, xdp: state.xdp.clone(), ..HookChanges::default() }
    }

    fn teller(&self) -> Box<dyn Teller> {
        Box::new(self.clone())
    }

    fn seen_from_underlay(&self) -> Result<u64, BpfError> {
        Ok(self.state().seen_from_underlay)
    }

    fn outcomes(&self) -> Result<BTreeMap<&'static str, u64>, BpfError> {
        Ok(self.counting()?.outcomes.clone())
    }

    fn flows_entered(&self) -> Result<u64, BpfError> {
        Ok(self.counting()?.flows_entered)
    }

    fn meter(&self) -> Box<dyn Meter> {
        Box::new(self.clone())
    }

    fn strangers(&self, _: std::time::Duration) -> Result<Vec<Stranger>, BpfError> {
        Ok(self.counting()?.strangers.clone())
    }

    fn keep_pins(&mut self) {
        let mut state = self.state();
        state.unpinned = state.pins_refused.clone();
    }

    fn unpinned(&self) -> Option<String> {
        self.state().unpinned.clone()
    }
}

impl Meter for FakeDatapath {
    fn peer_counters(&self) -> Result<BTreeMap<Ipv4Network, PeerCounters>, BpfError> {
        Ok(self.state().peer_counters.clone())
    }
}

impl Teller for FakeDatapath {
    fn raise_generation(&mut self) -> Result<(), BpfError> {
        Datapath::raise_generation(self)
    }

    fn set_veths(&mut self, veths: &[PodVeth]) -> Result<(), BpfError> {
        if self.state().veths == veths {
            return Ok(());
        }
        let mut state = self.writing()?;
        let other = |veth: &PodVeth| {
            let known = state.veths.iter().find(|known| known.ifindex == veth.ifindex);
            known.is_some_and(|known| known != veth)
        };
        let changed = veths.iter().any(other);
        state.veths = veths.to_vec();
        state.generation += u32::from(changed);
        Ok(())
    }

    fn set_keep(&mut self, keep: Keep) -> Result<(), BpfError> {
        if self.state().keep != keep {
            let mut state = self.writing()?;
            state.keep = keep;
            state.generation += 1;
        }
        Ok(())
    }

    fn bound_peers(
        &mut self,
        which: Which,
        mut bound: Option<&mut dyn FnMut(Destination, TunnelEnd) -> Option<u16>>,
    ) -> Result<Option<Bounded>, BpfError> {
        let mut state = self.writing()?;
        let end = TunnelEnd { source: Ipv4Addr::UNSPECIFIED, port: 0, vrf: 0 };
        let before = state.bounds.clone();
        let peers: Vec<Peer> = state.peers.values().copied().collect();
        for Peer { subnet, public_ip, .. } in peers {
            if which == Which::New && state.bounds.contains_key(&subnet) {
                continue;
            }
            let direct = state.direct.contains(&subnet);
            let to = Destination { subnet, public_ip, direct };
            match bound.as_mut().and_then(|bound| bound(to, end)) {
                Some(largest) => state.bounds.insert(subnet, largest),
                None => state.bounds.remove(&subnet),
            };
        }
        let changed = state.bounds != before;
        state.generation += u32::from(changed);
        Ok(changed.then(Bounded::default))
    }

    fn tcx(&self, ifindex: u32) -> Result<Tcx, BpfError> {
        Ok(self.state().tcx.get(&ifindex).cloned().unwrap_or_default())
    }
}
