mod successor;

use super::*;

fn address(text: &str) -> LinkAddress {
    LinkAddress { network: text.parse().unwrap(), permanent: true, deprecated: false, global: true }
}

fn link(ifindex: u32, name: &str, addresses: &[LinkAddress]) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        mac: None,
        mtu: 1500,
        up: true,
        carrier: true,
        ethernet: true,
        loopback: name == "lo",
        kind: String::new(),
        master: None,
        lower: None,
        lower_netns: None,
        bridge: None,
        qdisc: String::new(),
        addresses: addresses.to_vec(),
    }
}

fn links() -> Vec<Link> {
    vec![
        link(1, "lo", &[address("127.0.0.1/8"), address("10.9.9.9/32")]),
        link(2, "eth0", &[address("10.0.2.15/24")]),
        link(3, "eth1", &[address("192.168.7.4/24"), address("192.168.7.5/24")]),
    ]
}

fn route(ifindex: u32) -> UnderlayRoutes {
    UnderlayRoutes { defaults: vec![RouteTo { ifindex, source: None, gateway: None }], reach: None }
}

fn published(text: &str) -> Wish {
    Wish { public_ip: Some(ip(text)), ..Wish::default() }
}

fn by_iface(links: &[Link], iface: &[&str]) -> Result<Underlay, UnderlayError> {
    let iface: Vec<String> = iface.iter().map(|name| (*name).to_owned()).collect();
    choose(links, &Wish { iface, ..Wish::default() }, route(2))
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

#[test]
fn the_default_route_decides_when_nothing_is_asked_for() {
    let chosen = choose(&links(), &Wish::default(), route(2)).unwrap();
    assert_eq!((chosen.name.as_str(), chosen.address), ("eth0", ip("10.0.2.15")));
    assert_eq!(chosen.public_ip, chosen.address);
}

#[test]
fn iface_takes_names_and_addresses_and_the_first_that_fits() {
    assert_eq!(by_iface(&links(), &["eth1"]).unwrap().address, ip("192.168.7.4"));
    assert_eq!(by_iface(&links(), &["192.168.7.5"]).unwrap().address, ip("192.168.7.5"));
    assert_eq!(by_iface(&links(), &["wlan0", "10.1.1.1", "eth1"]).unwrap().name, "eth1");
}

#[test]
fn several_names_in_one_iface_are_told() {
    let error = by_iface(&links(), &["eth0,eth1"]).unwrap_err().to_string();
    assert!(error.contains("no interface eth0,eth1; give --iface once for each name"), "{error}");
}

#[test]
fn iface_that_fits_nothing_tells_why_and_what_there_is() {
    let mut links = links();
    links[0].addresses.truncate(1);
    let error = by_iface(&links, &["wlan0", "10.1.1.1", "lo"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no interface fits --iface=wlan0: there is no interface wlan0; \
         --iface=10.1.1.1: no interface has the address 10.1.1.1; \
         --iface=lo: lo has no usable IPv4 address; \
         there are: eth0 (10.0.2.15), eth1 (192.168.7.4 192.168.7.5)"
    );
}

#[test]
fn addresses_are_read_as_gos_net_package_does() {
    assert_eq!(super::address("::ffff:192.0.2.7"), Ok(ip("192.0.2.7")));
    for wrong in ["fd00::1", "192.0.2.07", "192.0.2.7 ", "192.0.2", ""] {
        super::address(wrong).unwrap_err();
    }
    let chosen = by_iface(&links(), &["::ffff:192.168.7.5"]).unwrap();
    assert_eq!((chosen.name.as_str(), chosen.address), ("eth1", ip("192.168.7.5")));
}

#[test]
fn loopback_is_taken_only_where_it_is_named_and_has_an_address() {
    assert!(by_iface(&links(), &["127.0.0.1"]).is_err());
    assert!(choose(&links(), &Wish::default(), route(1)).is_err());
    let mut links = links();
    links[0].mtu = 65536;
    links[0].ethernet = false;
    links[2].mtu = 1400;
    links.push(link(9, "cni0", &[address("10.5.1.1/24")]));
    links[3].mtu = 1300;
    links[3].kind = "bridge".to_owned();
    let pods = Some(ip("10.5.0.0")..=ip("10.5.255.255"));
    let by_public_ip = Wish { pods: pods.clone(), ..published("10.9.9.9") };
    let by_name = Wish { iface: vec!["lo".to_owned()], pods: pods.clone(), ..Wish::default() };
    let by_address = Wish { iface: vec!["10.9.9.9".to_owned()], pods, ..Wish::default() };
    for wish in [by_public_ip, by_name, by_address] {
        let chosen = choose(&links, &wish, route(2)).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.address), ("lo", ip("10.9.9.9")));
        assert_eq!((chosen.public_ip, chosen.mtu), (ip("10.9.9.9"), 1400));
        let why = chosen.ebpf_refusal().unwrap();
        assert!(why.contains("10.9.9.9 is on lo"), "{why}");
    }
    links.truncate(1);
    assert_eq!(by_iface(&links, &["lo"]).unwrap().mtu, 1500, "nothing better is known");
}

#[test]
fn a_default_route_through_an_overlay_is_no_way_for_its_packets() {
    let mut links = links();
    let device = |ifindex, name, kind: &str| Link {
        kind: kind.to_owned(),
        ..link(ifindex, name, &[address("10.5.1.0/32")])
    };
    links.extend([device(8, "flannel.1", "vxlan"), device(9, "flannel0", "tun")]);
    let to = |ifindex| RouteTo { ifindex, source: None, gateway: None };
    let routes = |all: &[u32]| UnderlayRoutes {
        defaults: all.iter().copied().map(to).collect(),
        reach: all.first().copied().map(to),
    };
    let chosen = choose(&links, &Wish::default(), routes(&[8, 9, 3, 2])).unwrap();
    assert_eq!(chosen.name, "eth1");
    let error = choose(&links, &Wish::default(), routes(&[9])).unwrap_err().to_string();
    assert!(error.contains("no IPv4 default route"), "{error}");
    let wish = Wish { can_reach: Some(ip("198.51.100.1")), ..Wish::default() };
    let error = choose(&links, &wish, routes(&[8])).unwrap_err().to_string();
    assert!(error.contains("flannel.1 is a device of an overlay"), "{error}");
}

#[test]
fn the_address_that_was_published_last_goes_before_the_kernels_order() {
    let virtual_first = [address("192.168.60.100/32"), address("192.168.60.12/24")];
    let links = [link(2, "eth0", &virtual_first)];
    let wish = Wish { familiar: Some(ip("192.168.60.12")), ..Wish::default() };
    assert_eq!(choose(&links, &wish, route(2)).unwrap().address, ip("192.168.60.12"));
    let wish = Wish { iface: vec!["eth0".to_owned()], ..wish };
    assert_eq!(choose(&links, &wish, route(2)).unwrap().address, ip("192.168.60.12"));
    // It has gone: the kernel's order.
    let wish = Wish { familiar: Some(ip("192.168.60.13")), ..Wish::default() };
    assert_eq!(choose(&links, &wish, route(2)).unwrap().address, ip("192.168.60.100"));
}

#[test]
fn a_local_public_ip_picks_its_interface() {
    let wish = published("192.168.7.5");
    let chosen = choose(&links(), &wish, route(2)).unwrap();
    assert_eq!((chosen.name.as_str(), chosen.address), ("eth1", ip("192.168.7.5")));
}

#[test]
fn a_foreign_public_ip_is_published_but_not_bound() {
    let wish = published("203.0.113.9");
    let chosen = choose(&links(), &wish, route(2)).unwrap();
    assert_eq!((chosen.address, chosen.public_ip), (ip("10.0.2.15"), ip("203.0.113.9")));
}

#[test]
fn iface_goes_before_public_ip() {
    let wish = Wish { iface: vec!["eth0".to_owned()], ..published("192.168.7.5") };
    let chosen = choose(&links(), &wish, route(3)).unwrap();
    assert_eq!((chosen.name.as_str(), chosen.address), ("eth0", ip("10.0.2.15")));
    assert_eq!(chosen.public_ip, ip("192.168.7.5"));
    let wish = Wish { iface: vec!["eth1".to_owned()], ..published("192.168.7.5") };
    assert_eq!(
        choose(&links(), &wish, UnderlayRoutes::default()).unwrap().address,
        ip("192.168.7.5")
    );
}

#[test]
fn a_public_ip_that_nobody_can_send_to_is_refused() {
    for text in ["0.0.0.0", "127.0.0.1", "224.0.0.9", "255.255.255.255"] {
        let wish = published(text);
        let error = choose(&links(), &wish, route(2)).unwrap_err();
        assert_eq!(error, UnderlayError::BadPublicIp(ip(text)));
    }
}

#[test]
fn no_default_route_lists_the_candidates() {
    let error =
        choose(&links(), &Wish::default(), UnderlayRoutes::default()).unwrap_err().to_string();
    assert!(error.contains("--iface") && error.contains("eth1 (192.168.7.4"), "{error}");
    let error = choose(&[], &Wish::default(), UnderlayRoutes::default()).unwrap_err().to_string();
    assert!(error.ends_with("none with an IPv4 address"), "{error}");
}

#[test]
fn a_link_that_is_down_or_without_mtu_or_address_is_refused() {
    let change = |change: fn(&mut Link)| {
        let mut links = links();
        change(&mut links[1]);
        by_iface(&links, &["eth0"]).unwrap_err().to_string()
    };
    assert!(change(|link| link.up = false).contains("eth0 is down"));
    let text = change(|link| link.mtu = 0);
    assert!(text.contains("failed to determine MTU for eth0 interface"), "{text}");
    assert!(change(|link| link.addresses.clear()).contains("eth0 has no usable IPv4"));
}

#[test]
fn addresses_are_taken_in_flannels_order() {
    let link_local = LinkAddress { global: false, ..address("169.254.3.4/16") };
    let dynamic = LinkAddress { permanent: false, ..address("10.0.0.7/24") };
    let deprecated = LinkAddress { deprecated: true, ..address("10.0.0.8/24") };
    let permanent = address("10.0.0.9/24");
    let best = |addresses: &[LinkAddress]| ranked(addresses).first().map(|ip| ip.to_string());
    let all = [deprecated, link_local, dynamic, permanent, address("10.0.0.10/24")];
    assert_eq!(best(&all).as_deref(), Some("10.0.0.9"));
    assert_eq!(best(&all[..3]).as_deref(), Some("10.0.0.7"));
    assert_eq!(best(&all[..2]).as_deref(), Some("169.254.3.4"));
    assert_eq!(best(&all[..1]), None);
}

#[test]
fn an_interface_without_ethernet_is_taken_but_not_for_ebpf() {
    let mut links = links();
    links[1].ethernet = false;
    let chosen = by_iface(&links, &["eth0"]).unwrap();
    assert!(chosen.ebpf_refusal().unwrap().contains("eth0 is not an Ethernet interface"));
    links[1].ethernet = true;
    assert_eq!(by_iface(&links, &["eth0"]).unwrap().ebpf_refusal(), None);
}

fn pattern(patterns: &[&str]) -> Wish {
    let iface_regex = patterns.iter().map(|text| Regex::new(text).unwrap()).collect();
    Wish { iface_regex, ..Wish::default() }
}

fn by_wish(wish: &Wish) -> Result<(String, Ipv4Addr), UnderlayError> {
    choose(&links(), wish, route(2)).map(|chosen| (chosen.name, chosen.address))
}

fn eth1(address: &str) -> (String, Ipv4Addr) {
    ("eth1".to_owned(), ip(address))
}

#[test]
fn a_pattern_is_tried_on_addresses_then_on_names() {
    assert_eq!(by_wish(&pattern(&["^192\\.168\\."])).unwrap(), eth1("192.168.7.4"));
    assert_eq!(by_wish(&pattern(&["7\\.5$"])).unwrap(), eth1("192.168.7.5"));
    assert_eq!(by_wish(&pattern(&["th1"])).unwrap(), eth1("192.168.7.4"));
    // "1" is in an address of eth0, which goes before the name of eth1.
    assert_eq!(by_wish(&pattern(&["1"])).unwrap().0, "eth0");
    assert_eq!(by_wish(&pattern(&["^wlan", "eth1"])).unwrap().0, "eth1");
}

#[test]
fn a_pattern_comes_after_iface_and_before_can_reach() {
    let reach = Some(RouteTo { ifindex: 3, source: Some(ip("192.168.7.5")), gateway: None });
    let routes = UnderlayRoutes { reach, ..route(2) };
    let mut wish = Wish {
        iface: vec!["wlan0".to_owned()],
        can_reach: Some(ip("192.168.7.77")),
        ..pattern(&["^nothing$"])
    };
    let chosen = choose(&links(), &wish, routes.clone()).unwrap();
    assert_eq!((chosen.name, chosen.address), eth1("192.168.7.5"));
    wish.iface_regex = pattern(&["eth0"]).iface_regex;
    assert_eq!(choose(&links(), &wish, routes.clone()).unwrap().name, "eth0");
    wish.iface.push("eth1".to_owned());
    assert_eq!(choose(&links(), &wish, routes).unwrap().name, "eth1");
}

#[test]
fn a_pattern_skips_what_cannot_be_used() {
    let mut links = links();
    links[1].name = "eth1-old".to_owned();
    links[1].up = false;
    let wish = pattern(&["^(10|192)\\."]);
    assert_eq!(choose(&links, &wish, route(2)).unwrap().name, "eth1");
    links[2].up = false;
    let error = choose(&links, &wish, route(2)).unwrap_err().to_string();
    assert!(error.contains("--iface-regex=^(10|192)\\.: eth1 is down"), "{error}");
    let error = by_wish(&pattern(&["^lo$"])).unwrap_err().to_string();
    assert!(error.contains("matches no interface's address or name"), "{error}");
}

#[test]
fn a_pattern_never_picks_the_overlay() {
    let mut links = links();
    links.push(link(9, "cni0", &[address("10.5.1.1/24")]));
    links.push(link(10, "flannel.1", &[address("10.5.1.0/32")]));
    let mut wish = pattern(&["^10\\.5\\.", "cni0"]);
    assert_eq!(choose(&links, &wish, route(2)).unwrap().name, "cni0");
    wish.pods = Some(ip("10.5.0.0")..=ip("10.5.255.255"));
    assert!(choose(&links, &wish, route(2)).is_err());
    // Only pods' addresses are meant, not all of a wide network.
    wish.pods = Some(ip("10.5.10.0")..=ip("10.5.99.255"));
    assert_eq!(choose(&links, &wish, route(2)).unwrap().name, "cni0");
}

#[test]
fn can_reach_takes_interface_and_source_of_the_route() {
    let to = |text: &str| Wish { can_reach: Some(ip(text)), ..Wish::default() };
    let routes = |ifindex, source: Option<&str>| UnderlayRoutes {
        reach: Some(RouteTo { ifindex, source: source.map(ip), gateway: None }),
        defaults: Vec::new(),
    };
    let choose = |wish, routes| choose(&links(), &wish, routes);
    let chosen = choose(to("192.168.9.9"), routes(3, Some("192.168.7.5"))).unwrap();
    assert_eq!((chosen.name, chosen.address, chosen.public_ip), {
        let (name, address) = eth1("192.168.7.5");
        (name, address, address)
    });
    let chosen = choose(to("192.168.9.9"), routes(3, None)).unwrap();
    assert_eq!(chosen.address, ip("192.168.7.4"));
    let nat = Wish { public_ip: Some(ip("203.0.113.9")), ..to("192.168.9.9") };
    let chosen = choose(nat, routes(3, Some("192.168.7.5"))).unwrap();
    assert_eq!((chosen.address, chosen.public_ip), (ip("192.168.7.5"), ip("203.0.113.9")));
    // Our own address is reached by the loopback interface.
    for (wish, routes, reason) in [
        (to("10.0.2.15"), routes(1, Some("10.0.2.15")), "lo is a loopback interface"),
        (to("192.168.9.9"), UnderlayRoutes::default(), "there is no route to 192.168.9.9"),
        (
            Wish { pods: Some(ip("10.5.0.0")..=ip("10.5.255.255")), ..to("10.5.3.4") },
            routes(3, None),
            "10.5.3.4 is in the overlay network",
        ),
    ] {
        let error = choose(wish, routes).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("--iface-can-reach="), "{error}");
    }
}

#[test]
fn what_was_sought_stays_while_it_has_its_address() {
    let reach = |ifindex| UnderlayRoutes {
        reach: Some(RouteTo { ifindex, source: None, gateway: None }),
        ..route(ifindex)
    };
    let sought = Wish { can_reach: Some(ip("192.168.9.9")), ..Wish::default() };
    let mut links = links();
    let current = choose(&links, &sought, reach(3)).unwrap();
    links[2].mtu = 1400;
    let followed = follow(&current, &links, &sought, reach(2), Away::Choose).unwrap();
    assert_eq!((followed.name.as_str(), followed.mtu), ("eth1", 1400));
    links[2].up = false;
    let error = follow(&current, &links, &sought, reach(2), Away::Choose).unwrap_err().to_string();
    assert_eq!(error, "the underlay's interface cannot be used: eth1 is down");
    assert_eq!(
        follow(&current, &links, &Wish::default(), route(2), Away::Choose).unwrap().name,
        "eth0"
    );
    links[2].addresses.remove(0);
    assert_eq!(follow(&current, &links, &sought, reach(2), Away::Choose).unwrap().name, "eth0");
}

/// A node on `eth0` with a second card.
fn two_cards() -> (Vec<Link>, Underlay) {
    let mut links = links();
    for link in &mut links {
        link.mac = Some(MacAddr([2, 0, 0, 0, 0, link.ifindex as u8]));
    }
    let current = choose(&links, &Wish::default(), route(2)).unwrap();
    (links, current)
}

#[test]
fn an_address_that_comes_and_goes_moves_nothing() {
    let (mut links, current) = two_cards();
    let stays = |links: &[Link], routes: UnderlayRoutes| {
        for away in [Away::Wait, Away::Choose] {
            let wish = Wish::default();
            let followed = follow(&current, links, &wish, routes.clone(), away).unwrap();
            assert_eq!(followed, current);
        }
    };
    // Before the node's own in the kernel's order, and permanent where that is not.
    links[1].addresses[0].permanent = false;
    links[1].addresses.insert(0, address("10.0.2.100/32"));
    stays(&links, route(2));
    links[1].addresses.remove(0);
    stays(&links, route(2));
    // A VPN has the better route now.
    stays(&links, route(3));
    stays(&links, UnderlayRoutes::default());
}

#[test]
fn a_flap_is_waited_for_and_a_new_address_of_the_card_is_taken() {
    let (mut links, current) = two_cards();
    let wish = Wish::default();
    links[1].up = false;
    let error = follow(&current, &links, &wish, route(3), Away::Wait).unwrap_err().to_string();
    assert_eq!(error, "the underlay's interface cannot be used: eth0 is down");
    assert_eq!(follow(&current, &links, &wish, route(3), Away::Choose).unwrap().name, "eth1");
    links[1].up = true;
    links[1].addresses = vec![address("10.0.2.100/24")];
    let error = follow(&current, &links, &wish, route(3), Away::Wait).unwrap_err().to_string();
    assert!(error.ends_with("eth0 has no address 10.0.2.15 any more"), "{error}");
    let moved = follow(&current, &links, &wish, route(3), Away::Choose).unwrap();
    assert_eq!((moved.name.as_str(), moved.address), ("eth0", ip("10.0.2.100")));
    links.remove(1);
    let error = follow(&current, &links, &wish, route(3), Away::Wait).unwrap_err().to_string();
    assert!(error.ends_with("eth0 has gone, and 10.0.2.15 with it"), "{error}");
    assert_eq!(follow(&current, &links, &wish, route(3), Away::Choose).unwrap().name, "eth1");
}

#[test]
fn a_card_is_followed_by_its_index_and_its_mac() {
    let (mut links, current) = two_cards();
    let named = Wish { iface: vec!["eth0".to_owned()], ..Wish::default() };
    // The names of two cards were swapped.
    links[1].name = "eth1".to_owned();
    links[2].name = "eth0".to_owned();
    for wish in [&named, &Wish::default()] {
        let followed = follow(&current, &links, wish, route(3), Away::Wait).unwrap();
        assert_eq!(followed, Underlay { name: "eth1".to_owned(), ..current.clone() });
    }
    // It was made anew, and its old index is another card's.
    links[1].ifindex = 12;
    links[2].ifindex = 2;
    let followed = follow(&current, &links, &named, route(2), Away::Wait).unwrap();
    assert_eq!((followed.ifindex, followed.name.as_str()), (12, "eth1"));
    // It is in a bond, which has taken its MAC and address.
    let address = links[1].addresses.remove(0);
    let bond = Link { mac: current.mac, kind: "bond".to_owned(), ..link(20, "bond0", &[address]) };
    links.push(bond);
    let followed = follow(&current, &links, &named, route(2), Away::Wait).unwrap();
    assert_eq!(followed.name, "bond0");
}
