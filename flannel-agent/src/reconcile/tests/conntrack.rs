//! Conntrack's settings.

use super::*;
use crate::kernel::sysctl::Timeout;

const UNACKNOWLEDGED: &str = "net/netfilter/nf_conntrack_tcp_timeout_unacknowledged";
const MAX_RETRANS: &str = "net/netfilter/nf_conntrack_tcp_timeout_max_retrans";
const ESTABLISHED: &str = "net/netfilter/nf_conntrack_tcp_timeout_established";
const FIN_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_fin_wait";
const CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const UDP: &str = "net/netfilter/nf_conntrack_udp_timeout";
const UDP_STREAM: &str = "net/netfilter/nf_conntrack_udp_timeout_stream";

fn conntrack(folder: &std::path::Path, values: &[(&str, &str)]) {
    for (key, value) in values {
        std::fs::write(folder.join(key), value).unwrap();
    }
}

#[tokio::test]
async fn idle_connections_live_as_long_as_established_ones() {
    let mut bench = bench(true);
    let folder = bench.sysctls.path().to_owned();
    let read = |key: &str| std::fs::read_to_string(folder.join(key)).unwrap();
    conntrack(&folder, &[(ESTABLISHED, "432000\n"), (UNACKNOWLEDGED, "20\n")]);
    conntrack(&folder, &[(MAX_RETRANS, "999999\n")]);
    bench.pass(&[peer(2)], Wake::ALL).await;
    // The state file is written, and it is looked at once more.
    bench.reconciler.remembered();
    bench.reconciler.check_hooks();
    assert_eq!(read(UNACKNOWLEDGED), "432000");
    assert_eq!(read(MAX_RETRANS), "999999\n", "longer than that already");
    let name = Timeout::TcpUnacknowledged.name();
    assert_eq!(bench.reconciler.traces().sysctls[&name], "20");
    assert!(!bench.reconciler.traces().sysctls.contains_key(&Timeout::TcpMaxRetrans.name()));

    // Somebody sets them back; the first values stay remembered.
    conntrack(&folder, &[(UNACKNOWLEDGED, "300\n"), (MAX_RETRANS, "300\n")]);
    bench.reconciler.check_hooks();
    assert_eq!((read(UNACKNOWLEDGED), read(MAX_RETRANS)), ("432000".into(), "300\n".into()));
    bench.reconciler.remembered();
    bench.reconciler.check_hooks();
    assert_eq!((read(UNACKNOWLEDGED), read(MAX_RETRANS)), ("432000".into(), "432000".into()));
    assert_eq!(bench.reconciler.traces().sysctls[&name], "20");
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn timeouts_that_cannot_be_set_are_told_and_tcp_goes_on() {
    let mut bench = bench(true);
    let folder = bench.sysctls.path().to_owned();
    conntrack(&folder, &[(ESTABLISHED, "432000\n")]);
    std::fs::create_dir(folder.join(UNACKNOWLEDGED)).unwrap();
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert!(bench.datapath.state().config.as_ref().unwrap().tcp);
    assert_eq!(bench.complaints(), ["conntrack timeouts"]);
    std::fs::remove_dir(folder.join(UNACKNOWLEDGED)).unwrap();
    bench.reconciler.check_hooks();
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn without_a_fast_path_timeouts_are_left_alone() {
    let mut bench = bench(true);
    let folder = bench.sysctls.path().to_owned();
    conntrack(&folder, &[(ESTABLISHED, "432000\n"), (UNACKNOWLEDGED, "300\n")]);
    bench.reconciler.settings.fast_path.mode = FastPath::Off;
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(std::fs::read_to_string(folder.join(UNACKNOWLEDGED)).unwrap(), "300\n");
}

#[tokio::test]
async fn connections_are_proven_before_conntrack_forgets_them() {
    let mut bench = bench(true);
    let folder = bench.sysctls.path().to_owned();
    let window = |bench: &Bench| bench.datapath.state().config.as_ref().unwrap().window;
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(window(&bench), Duration::from_secs(5), "no conntrack");
    for (name, seconds, expected) in [
        (ESTABLISHED, "432000\n", 5000),
        (UNACKNOWLEDGED, "300\n", 5000),
        (FIN_WAIT, "16\n", 4000),
        (CLOSE_WAIT, "8\n", 2000),
        (ESTABLISHED, "1\n", 250),
    ] {
        conntrack(&folder, &[(name, seconds)]);
        bench.reconciler.check_hooks();
        assert_eq!(window(&bench), Duration::from_millis(expected), "{name} {seconds}");
    }
}

#[tokio::test]
async fn udp_flows_are_proven_before_conntrack_forgets_them() {
    let mut bench = bench(true);
    let folder = bench.sysctls.path().to_owned();
    let window = |bench: &Bench| bench.datapath.state().config.as_ref().unwrap().udp_window;
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(window(&bench), Duration::from_secs(5), "no conntrack");
    conntrack(&folder, &[(UDP, "30\n"), (UDP_STREAM, "120\n")]);
    bench.reconciler.check_hooks();
    assert_eq!(window(&bench), Duration::from_secs(5));
    conntrack(&folder, &[(UDP, "2\n")]);
    bench.reconciler.check_hooks();
    assert_eq!(window(&bench), Duration::from_millis(500));
    conntrack(&folder, &[(UDP_STREAM, "1\n")]);
    bench.reconciler.check_hooks();
    assert_eq!(window(&bench), Duration::from_millis(250));
    conntrack(&folder, &[(UDP_STREAM, "soon\n")]);
    bench.reconciler.check_hooks();
    assert_eq!(bench.complaints(), ["conntrack UDP timeouts"]);
}
