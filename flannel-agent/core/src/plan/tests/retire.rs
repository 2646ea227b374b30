//! Another overlay network than before.

use super::*;

#[test]
fn what_is_of_another_network_is_retired() {
    let direct = |subnet| DirectRoute::to_peer(net(subnet), ip(7), 2);
    let mut observed = Observed::default();
    for subnet in ["10.5.1.0/24", "10.6.1.0/24", "10.9.1.0/24"] {
        observed.routes.insert(ObservedRoute::to_peer(net(subnet)));
        observed.direct.insert(direct(subnet));
        observed.neighbours.insert(net(subnet).network(), mac(7));
    }
    // The former network is 10.4.0.0/14, of which 10.6.0.0/16 is ours now; what
    // is in neither is somebody else's.
    let ops = retire(&observed, net("10.4.0.0/14"), net("10.6.0.0/16"));
    let old = net("10.5.1.0/24");
    let expected = [
        Op::RemoveRoute(ObservedRoute::to_peer(old)),
        Op::RemoveDirect(direct("10.5.1.0/24")),
        Op::RemoveNeighbour(old.network(), mac(7)),
    ];
    assert_eq!(ops, expected);
    assert_eq!(retire(&observed, net("10.5.0.0/16"), net("10.4.0.0/14")), []);
}
