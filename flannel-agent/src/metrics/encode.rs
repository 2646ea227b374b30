//! A snapshot as OpenMetrics text.

use std::fmt;

use flannel_core::repair::Repair;
use flannel_core::status::DatapathKind;
use flannel_ebpf::abi::{ABI_VERSION, map, program};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric as _, NoLabelSet,
};
use prometheus_client::registry::Registry;

use super::catalogue::{self as metric, Metric};
use super::snapshot::{PEER_STATES, Snapshot};
use super::totals::Traffic;

/// The text of a scrape.
pub(super) fn text(snapshot: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = To(encoder);
        self.node(&mut to)?;
        self.packets(&mut to)?;
        self.store(&mut to)?;
        self.loop_and_maps(&mut to)?;
        self.process(&mut to)
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

struct To<'a>(DescriptorEncoder<'a>);

impl To<'_> {
    fn counters<'a, T: EncodeCounterValue>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (Labels<'a>, T)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(metric.family, metric.help, None, metric.kind)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, T, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<'a, T: EncodeGaugeValue>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (Labels<'a>, T)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(metric.family, metric.help, None, metric.kind)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counter<T: EncodeCounterValue>(&mut self, metric: &Metric, value: Option<T>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(metric.family, metric.help, None, metric.kind)?;
        value.map_or(Ok(()), |value| family.encode_counter::<NoLabelSet, T, u64>(&value, None))
    }

    fn gauge<T: EncodeGaugeValue>(&mut self, metric: &Metric, value: Option<T>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(metric.family, metric.help, None, metric.kind)?;
        value.map_or(Ok(()), |value| family.encode_gauge(&value))
    }
}

fn path(traffic: &Traffic) -> Labels<'static> {
    vec![("path", traffic.path), ("direction", traffic.direction)]
}

impl Snapshot {
    fn node(&self, to: &mut To<'_>) -> fmt::Result {
        let abi = ABI_VERSION.to_string();
        let build = vec![("version", env!("CARGO_PKG_VERSION")), ("abi", abi.as_str())];
        to.gauges(&metric::BUILD_INFO, [(build, 1u64)])?;
        to.gauge(&metric::READY, Some(u64::from(self.ready)))?;
        let modes = DatapathKind::ALL
            .into_iter()
            .map(|mode| (vec![("mode", mode.label())], u64::from(Some(mode) == self.mode)));
        to.gauges(&metric::DATAPATH_MODE, modes)?;
        to.gauge(&metric::DATAPATH_FALLBACK, Some(u64::from(self.fallback)))?;
        let subjects =
            self.not_well.iter().map(|(subject, count)| (vec![("subject", *subject)], *count));
        to.gauges(&metric::NOT_WELL, subjects)
    }

    fn packets(&self, to: &mut To<'_>) -> fmt::Result {
        to.counters(&metric::PACKETS, self.traffic.iter().map(|one| (path(one), one.packets)))?;
        let bytes = self.traffic.iter().filter_map(|one| Some((path(one), one.bytes?)));
        to.counters(&metric::BYTES, bytes)?;
        let outcomes = self.outcomes.iter().map(|(name, count)| (vec![("outcome", *name)], *count));
        to.counters(&metric::OUTCOMES, outcomes)?;
        let dropped = |name: &str| {
            name.starts_with("drop_") || (name.starts_with("forged_") && self.forged_are_dropped)
        };
        let dropped = self.outcomes.iter().filter(|(name, _)| dropped(name));
        to.counters(
            &metric::DROPPED,
            dropped.map(|(name, count)| (vec![("reason", *name)], *count)),
        )?;
        let kinds = [
            ("out", "confirmed_out"),
            ("in", "confirmed_in"),
            ("pair", "confirmed_pair"),
            ("tunnel", "confirmed_tunnel"),
        ];
        let confirmed = kinds.into_iter().filter_map(|(kind, outcome)| {
            Some((vec![("kind", kind)], *self.outcomes.get(outcome)?))
        });
        to.counters(&metric::CONFIRMED, confirmed)?;
        let states = PEER_STATES.iter().zip(self.peers);
        to.gauges(&metric::PEERS, states.map(|(state, count)| (vec![("state", *state)], count)))?;
        to.gauge(&metric::NARROW_PEERS, self.narrow_peers)?;
        self.by_peer(to)
    }

    fn by_peer(&self, to: &mut To<'_>) -> fmt::Result {
        if self.by_peer.is_empty() {
            return Ok(());
        }
        let named: Vec<(String, &Vec<Traffic>)> =
            self.by_peer.iter().map(|(subnet, all)| (subnet.to_string(), all)).collect();
        let samples = || {
            named.iter().flat_map(|(peer, all)| {
                let labels = |one: &Traffic| [vec![("peer", peer.as_str())], path(one)].concat();
                all.iter().map(move |one| (labels(one), one))
            })
        };
        to.counters(&metric::PEER_PACKETS, samples().map(|(labels, one)| (labels, one.packets)))?;
        let bytes = samples().map(|(labels, one)| (labels, one.bytes.unwrap_or(0)));
        to.counters(&metric::PEER_BYTES, bytes)
    }

    fn store(&self, to: &mut To<'_>) -> fmt::Result {
        to.gauge(&metric::LEASE_EXPIRATION, self.lease_expiration)?;
        to.gauge(&metric::STORE_UP, Some(u64::from(self.store_up)))?;
        to.counter(&metric::STORE_ERRORS, Some(self.store_errors))?;
        to.gauge(&metric::STORE_REVISION, self.store_revision)?;
        to.gauge(&metric::STORE_EVENT, self.store_event)
    }

    fn loop_and_maps(&self, to: &mut To<'_>) -> fmt::Result {
        let passes = &metric::RECONCILE;
        self.passes.encode(to.0.encode_descriptor(
            passes.family,
            passes.help,
            None,
            passes.kind,
        )?)?;
        let repairs = Repair::ALL.into_iter().map(|kind| {
            (vec![("kind", kind.name())], self.repairs.get(&kind).copied().unwrap_or(0))
        });
        to.counters(&metric::REPAIRS, repairs)?;
        let maps = map::ALL
            .iter()
            .filter_map(|name| Some((vec![("map", *name)], *self.map_pressure.get(name)?)));
        to.gauges(&metric::MAP_PRESSURE, maps)?;
        let programs = program::ALL.iter().chain([&program::FROM_WIRE]);
        let hooks = programs
            .map(|name| (vec![("program", *name)], self.hooks.get(name).copied().unwrap_or(0)));
        to.gauges(&metric::HOOKS, hooks)
    }

    fn process(&self, to: &mut To<'_>) -> fmt::Result {
        let process = &self.process;
        to.counter(&metric::CPU, process.cpu_seconds)?;
        to.gauge(&metric::START, process.start_seconds)?;
        to.gauge(&metric::RESIDENT, process.resident_bytes)?;
        to.gauge(&metric::VIRTUAL, process.virtual_bytes)?;
        to.gauge(&metric::THREADS, process.threads)?;
        to.gauge(&metric::OPEN_FDS, process.open_fds)?;
        to.gauge(&metric::MAX_FDS, process.max_fds)
    }
}
