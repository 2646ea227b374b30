//! Programs that are there after the first pass.

use super::*;

#[tokio::test]
async fn programs_that_come_later_are_served_without_a_look_and_repair_nothing() {
    let mut bench = bench(false);
    bench.pass(&[peer(2), peer(3)], Wake::ALL).await;
    assert_eq!(bench.observed().routes.len(), 2);
    bench.take_applied();
    *lock(&bench.reconciler.datapath) = Some(Box::new(bench.datapath.clone()));
    bench.reconciler.kernel.state().fail_next_read = Some(libc::EIO);
    bench.reconciler.datapath_opened();
    bench.pass(&[peer(2), peer(3)], Wake::default()).await;
    assert_eq!(bench.take_applied(), []);
    let state = bench.datapath.state();
    assert_eq!((state.peers.len(), state.veths.len(), state.ensured), (2, 1, 1));
    drop(state);
    assert_eq!(bench.complaints(), [""; 0]);
    assert_eq!(bench.shared.lock().record.take_repairs(), BTreeMap::new());
}
