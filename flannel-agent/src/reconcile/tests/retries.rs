//! When what has failed is tried again.

use super::*;

/// A card was away for long, and the device could not be made meanwhile.
#[tokio::test(start_paused = true)]
async fn what_failed_without_the_underlay_is_due_when_that_is_back() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    let wanted = bench.reconciler.wanted.desired.clone().unwrap().device.clone().unwrap();
    let links = {
        let mut state = bench.reconciler.kernel.state();
        let links = state.links.clone();
        state.links.retain(|link| link.name != "eth0");
        state.devices.clear();
        state.failing.push((Op::CreateDevice(wanted), libc::ENODEV));
        links
    };
    for _ in 0..20 {
        let outcome = bench.pass(&[peer(2)], Wake::ALL).await;
        let again = outcome.retry_at.unwrap();
        assert!(again <= Instant::now() + Duration::from_secs(1), "the device cannot wait");
        tokio::time::sleep_until(again).await;
    }
    assert_eq!(bench.complaints(), ["device", "underlay"]);
    // It has been tried just now, and is not due by itself.
    bench.pass(&[peer(2)], Wake::ALL).await;
    {
        let mut state = bench.reconciler.kernel.state();
        state.failing.clear();
        state.links = links;
    }
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert!(bench.observed().device.is_some());
    assert_eq!(bench.complaints(), [""; 0]);
}
