//! What goes together, and what is found without a walk.

use super::*;

/// What batches are made of.
fn kind(op: &Op) -> &'static str {
    match op {
        Op::PutNeighbour(..) | Op::PutFdb(..) => "entries",
        Op::PutMaps(_) => "maps",
        Op::PutRoute(_) => "routes",
        _ => "others",
    }
}

#[test]
fn the_kinds_of_a_slab_stay_together() {
    let count = 2 * SLAB + 10;
    let peers: Vec<Peer> = (0..count)
        .map(|number| {
            let [.., high, low] = u32::try_from(number + 1).unwrap().to_be_bytes();
            Peer {
                subnet: Ipv4Network::new(Ipv4Addr::new(10, 5, low, 0), 24).unwrap(),
                vtep_mac: MacAddr([2, 0, 0, 1, high, low]),
                public_ip: Ipv4Addr::new(192, 0, 3, low),
            }
        })
        .collect();
    let mut observed = converged(&desired(&[]), true);
    let all = desired(&peers);
    let ops = diff(&all, &observed);
    let runs: Vec<(&str, usize)> =
        ops.chunk_by(|a, b| kind(a) == kind(b)).map(|run| (kind(&run[0]), run.len())).collect();
    let slab = |size| [("entries", 2 * size), ("maps", size), ("routes", size)];
    assert_eq!(runs, [slab(SLAB), slab(SLAB), slab(10)].concat());
    settle(&mut observed, &ops);
    assert_eq!(diff(&all, &observed), []);
    let ops = diff(&desired(&[]), &observed);
    let runs: Vec<usize> =
        ops.chunk_by(|a, b| rank_of_removal(a) == rank_of_removal(b)).map(<[Op]>::len).collect();
    assert_eq!(runs, [count; 4], "what goes needs no slabs: no route leads to it any more");
}

#[test]
fn a_look_up_finds_what_a_walk_finds() {
    let mut observed = Observed::default();
    for (third, metric) in [(1, 5), (1, 0), (2, 7), (3, 0)] {
        let destination = Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap();
        observed.routes.insert(ObservedRoute { metric, ..ObservedRoute::to_peer(destination) });
        let gateway = ip(third);
        observed.direct.insert(DirectRoute::to_peer(destination, gateway, metric));
    }
    observed.routes.insert(ObservedRoute::to_link(net("10.5.3.0/24")));
    for subnet in ["10.5.0.0/24", "10.5.1.0/24", "10.5.1.0/25", "10.5.2.0/24", "10.5.3.0/24"] {
        let subnet = net(subnet);
        let first = observed.routes.iter().find(|r| r.destination == subnet && r.metric == 0);
        assert_eq!(observed.first_to(subnet), first.copied(), "{subnet}");
        let direct = observed.direct.iter().find(|r| r.destination == subnet);
        assert_eq!(observed.direct_to(subnet), direct.copied(), "{subnet}");
    }
}
