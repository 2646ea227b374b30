//! The data path may be there long after the device.

use super::*;

#[tokio::test(start_paused = true)]
async fn device_and_files_wait_for_no_verifier_but_readiness_does() {
    let (tell, opens) = oneshot::channel();
    let bench = Bench::start_before(opens).await;
    assert_eq!(bench.subnets().len(), 2);
    assert!(bench.dir.path().join("subnet.env").exists());
    assert_eq!(bench.passes(), 0);
    assert!(!bench.shared.lock().ready);
    tell.send(Ok(())).unwrap();
    bench.settle().await;
    assert!(bench.shared.lock().ready);
    assert_eq!(bench.datapath.state().peers.len(), 2);
    assert!(bench.passes() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_data_path_whose_opening_panics_is_the_kernels() {
    let (tell, opens) = oneshot::channel();
    let bench = Bench::start_before(opens).await;
    // The fake opening expects a word.
    drop(tell);
    bench.settle().await;
    let state = bench.shared.lock();
    assert!(state.ready);
    assert_eq!(state.datapath.mode, Some(DatapathKind::Kernel));
    assert!(state.datapath.reason.as_ref().unwrap().contains("opening it: it panicked"));
}

#[tokio::test(start_paused = true)]
async fn programs_that_are_demanded_and_refused_end_the_start() {
    let (tell, opens) = oneshot::channel();
    let bench = Bench::start_before(opens).await;
    tell.send(Err(Demanded("the verifier refuses".to_owned()))).unwrap();
    let ended = bench.task.await.unwrap();
    assert!(matches!(ended, Err(StartError::Datapath(Demanded(_)))), "{ended:?}");
    assert!(!bench.shared.lock().ready);
}
