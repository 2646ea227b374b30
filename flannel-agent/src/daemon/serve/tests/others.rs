//! Others who take things away, and how often that is answered.

use flannel_core::observed::ObservedRoute;
use flannel_core::repair::Repair;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_route_that_is_taken_away_is_back_at_once_and_without_a_look() {
    let bench = Bench::start(&[2, 3]).await;
    let looks = bench.kernel.state().looks;
    let route = ObservedRoute::to_peer(lease(2).subnet);
    bench.take_applied();
    let take = || {
        let mut state = bench.kernel.state();
        state.devices.get_mut("flannel.1").unwrap().routes.remove(&route);
    };
    take();
    bench.events.send(KernelEvent::RouteLost { ifindex: OVERLAY, route }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(bench.take_applied(), [Op::PutRoute(route.destination)]);
    bench.settle().await;
    assert_eq!(bench.kernel.state().looks, looks, "nothing else was lost");
    let told = bench.shared.lock().events.after(0);
    let repaired = What::Repaired { what: Repair::Route, times: 1 };
    assert!(told.events.iter().any(|event| event.what == repaired), "{told:?}");
    // One that is no peer's, and those of somebody who does nothing else.
    let others = ObservedRoute::to_peer("10.5.9.0/24".parse().unwrap());
    bench.tell(KernelEvent::RouteLost { ifindex: OVERLAY, route: others }).await;
    assert_eq!(bench.take_applied(), []);
    assert_eq!(bench.kernel.state().looks, looks + 1);
    for _ in 0..1000 {
        take();
        bench.events.send(KernelEvent::RouteLost { ifindex: OVERLAY, route }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.settle().await;
    assert!(bench.subnets().contains(&route.destination));
    let put = bench.take_applied().len();
    // One in 20 ms, eight more at first, and a few by looks.
    assert!((10..=70).contains(&put), "put back {put} times");
}

#[tokio::test(start_paused = true)]
async fn many_events_cost_few_looks_and_few_generations() {
    let bench = Bench::start(&[2]).await;
    let (looks, generation) = (bench.kernel.state().looks, bench.generation());
    for _ in 0..1000 {
        bench.events.send(KernelEvent::Route { ifindex: OVERLAY }).await.unwrap();
        bench.events.send(KernelEvent::Ruleset).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.settle().await;
    let looks = bench.kernel.state().looks - looks;
    assert!((2..=6).contains(&looks), "{looks} looks");
    let raised = bench.generation() - generation;
    assert!((10..=60).contains(&raised), "raised {raised} times");
    assert_eq!(bench.complaint(Subject::Firewall), None);
}
