//! Programs that log, which `cargo xtask program-log` builds and has tried.

use std::time::Duration;

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::pair::Pair;
use flannel_tests::wait;

#[test]
fn programs_that_log_say_why_the_kernel_has_a_packet() {
    let pair = Pair::agents(&Options::ebpf());
    let text = pair.client.ping(pair.server.address, "-c 2 -i 0.2 -W 5");
    assert!(text.contains("ttl=62"), "{text}");
    let message = format!("left to the kernel: outcome {}", Outcome::KernelProtocol as u32);
    wait::until("its message", Duration::from_secs(5), || {
        pair.left.agent_log().contains(&message).then_some(())
    });
    // Flows are confirmed and carried all the same.
    pair.fast_both_ways();
}
