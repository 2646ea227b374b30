//! Every metric: name, kind, labels and meaning. The reference page is made of
//! this, and nothing else is ever exposed.

use prometheus_client::metrics::MetricType;

/// A metric family.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name without the suffixes of its kind.
    pub family: &'static str,
    /// Kind.
    pub kind: MetricType,
    /// Labels.
    pub labels: &'static [&'static str],
    /// Meaning, in one sentence or two.
    pub help: &'static str,
}

impl Metric {
    /// Name as queries have it.
    pub fn name(&self) -> String {
        match self.kind {
            MetricType::Counter => format!("{}_total", self.family),
            _ => self.family.to_owned(),
        }
    }
}

macro_rules! metrics {
    ($($constant:ident $kind:ident $family:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                family: $family,
                kind: MetricType::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )+

        /// All, in the order of the page.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    BUILD_INFO Gauge "flannel_build_info" ["version", "abi"]
        "1. Version of the agent, and of the layouts that it shares with its programs.";
    READY Gauge "flannel_ready" []
        "1 while pods have a network: lease held, data plane programmed, subnet.env written. \
         The same as /readyz.";
    DATAPATH_MODE Gauge "flannel_datapath_mode" ["mode"]
        "1 for the data path in use: ebpf, kernel or udp.";
    DATAPATH_FALLBACK Gauge "flannel_datapath_fallback" []
        "1 while the kernel path carries everything though nobody asked for it. `status` says why.";
    NOT_WELL Gauge "flannel_not_well" ["subject"]
        "Present complaints by what they are about. All subjects together have at most 100.";
    PACKETS Counter "flannel_packets" ["path", "direction"]
        "Packets of the overlay by who carried them (fast, shortcut, kernel, udp) and direction \
         (in, out). A GSO packet counts once. Absent on the kernel path, which counts on its device.";
    BYTES Counter "flannel_bytes" ["path", "direction"]
        "Bytes of inner IP packets. Those of the shortcut are in kernel.";
    OUTCOMES Counter "flannel_outcomes" ["outcome"]
        "What became of packets at the hooks. docs/troubleshooting.md has each outcome.";
    DROPPED Counter "flannel_dropped_packets" ["reason"]
        "Packets that were dropped, by the outcome that says why. Outcomes forged_* are here \
         only with --verify-source=drop.";
    CONFIRMED Counter "flannel_confirmed_flows" ["kind"]
        "Confirmations: flows (out, in), pairs of --fast-path=eager, tunnels of peers. A flow is \
         confirmed again in each window.";
    PEERS Gauge "flannel_peers" ["state"]
        "Peers: ok; pending, while something of theirs cannot be programmed; unmapped, if only \
         the kernel path reaches them.";
    NARROW_PEERS Gauge "flannel_narrow_peers" []
        "Peers to which the kernel sends large packets, or all, because a route there has an MTU \
         or a hop limit of its own. Absent on the kernel path.";
    PEER_PACKETS Counter "flannel_peer_packets" ["peer", "path", "direction"]
        "Packets by the peer's subnet; with --metrics-peers only. The shortcut's are in kernel.";
    PEER_BYTES Counter "flannel_peer_bytes" ["peer", "path", "direction"]
        "Bytes of inner IP packets by the peer's subnet; with --metrics-peers only.";
    LEASE_EXPIRATION Gauge "flannel_lease_expiration_timestamp_seconds" []
        "When our lease ends. Absent without a lease, and for a reservation, which never ends.";
    STORE_UP Gauge "flannel_store_up" []
        "1 while the store is being followed.";
    STORE_ERRORS Counter "flannel_store_errors" []
        "How often the store could not be followed, or gave no answer at the start.";
    STORE_REVISION Gauge "flannel_store_revision" []
        "Revision of the last change of the leases that was told. Nodes of one cluster agree on it.";
    STORE_EVENT Gauge "flannel_store_last_event_timestamp_seconds" []
        "When the store last told of leases. A quiet cluster has none for hours.";
    RECONCILE Histogram "flannel_reconcile_duration_seconds" []
        "How long a pass took that makes the node what it should be.";
    REPAIRS Counter "flannel_repairs" ["kind"]
        "What was put right though no lease had changed: somebody else had changed or removed it.";
    MAP_PRESSURE Gauge "flannel_bpf_map_pressure" ["map"]
        "How full a BPF map is, from 0 to 1. For fl_flows4: new flows in each window, as a share \
         of what it holds; more than 1 means that flows are evicted before their time.";
    HOOKS Gauge "flannel_hooks_attached" ["program"]
        "Devices at which each program runs.";
    CPU Counter "process_cpu_seconds" []
        "CPU time of the agent in user and kernel mode.";
    START Gauge "process_start_time_seconds" []
        "When the agent began, since the epoch.";
    RESIDENT Gauge "process_resident_memory_bytes" []
        "Resident memory of the agent.";
    VIRTUAL Gauge "process_virtual_memory_bytes" []
        "Virtual memory of the agent.";
    THREADS Gauge "process_threads" []
        "Threads of the agent.";
    OPEN_FDS Gauge "process_open_fds" []
        "Open file descriptors.";
    MAX_FDS Gauge "process_max_fds" []
        "How many file descriptors the agent may open.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<String> = ALL.iter().map(Metric::name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            let name = metric.name();
            assert!(name.starts_with("flannel_") || name.starts_with("process_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert!(!metric.family.ends_with("_total"), "{name}");
            // Base units, and no age: a graph of a time stamp says more.
            for word in ["_ms", "milli", "micro", "_age", "_ago", "minutes", "kilo"] {
                assert!(!name.contains(word), "{name}");
            }
            for label in metric.labels {
                assert!(!["src", "dst", "source", "port", "flow", "pod"].contains(label), "{name}");
            }
            assert!(metric.help.ends_with('.'), "{name}: {}", metric.help);
        }
    }
}
