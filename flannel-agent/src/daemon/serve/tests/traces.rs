//! The state file knows what is to be undone until it is.

use flannel_core::checksum::TunnelChecksum;
use flannel_core::observed::{Observed, ObservedDevice, ObservedVxlan};

use super::*;

impl Bench {
    /// What the state file would tell the next start.
    fn written(&self) -> Traces {
        state::load(&self.dir.path().join("state")).state.unwrap().traces
    }
}

#[tokio::test(start_paused = true)]
async fn the_state_file_names_what_is_not_undone_yet() {
    let left = Traces {
        tunnel_checksum: TunnelChecksum::Kernel,
        former_devices: ["flannel.7".to_owned()].into(),
        unmarked_routes: true,
        ..Traces::default()
    };
    let bench = Bench::begin(CONFIG, &[2], &[], None, left.clone()).await;
    // The device of the run before.
    let device = ObservedDevice {
        ifindex: OVERLAY,
        vxlan: Some(ObservedVxlan {
            vni: 1,
            port: 8472,
            local: Some(address(1)),
            underlay: 2,
            gbp: false,
            learning: false,
            ..ObservedVxlan::default()
        }),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1450,
        up: true,
        proto_down: false,
        bridge_port: false,
        addresses: Default::default(),
        unrouted: Default::default(),
        checksum: Some(TunnelChecksum::Kernel),
    };
    let observed = Observed { device: Some(device), ..Observed::default() };
    bench.kernel.state().devices.insert("flannel.1".to_owned(), observed);
    let back = Op::SetChecksum(TunnelChecksum::Device);
    bench.kernel.state().failing = vec![(back.clone(), libc::EBUSY)];
    bench.settle().await;
    let written = bench.written();
    assert_eq!(written.tunnel_checksum, TunnelChecksum::Kernel, "it could be killed now");
    assert_eq!(written.former_devices, left.former_devices, "nobody has removed it");
    bench.kernel.state().failing.clear();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.take_applied().contains(&back));
    let undone = bench.written();
    assert_eq!(undone.tunnel_checksum, TunnelChecksum::Device);
    assert!(!undone.unmarked_routes);
}
