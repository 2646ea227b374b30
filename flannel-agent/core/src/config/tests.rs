use proptest::prelude::*;

use super::*;

const VXLAN: &str = r#""Backend":{"Type":"vxlan"}"#;

fn parse(members: &str) -> Result<NetworkConfig, ConfigError> {
    NetworkConfig::parse(&format!("{{{members},{VXLAN}}}"))
}

fn vxlan(settings: &str) -> Result<VxlanConfig, ConfigError> {
    let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"{settings}}}}}"#);
    NetworkConfig::parse(&text).map(|config| match config.backend {
        Backend::Vxlan(vxlan) => vxlan,
        other => panic!("{other:?}"),
    })
}

/// The message, and the key it is filed under.
fn refusal<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> (String, String) {
    let error = result.unwrap_err();
    (error.to_string(), error.key().unwrap_or_default())
}

#[test]
fn differences_are_told_by_key() {
    let parse = |text: &str| NetworkConfig::parse(text).unwrap();
    let one = parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    assert_eq!(one.differences(&one), [""; 0]);
    let two = parse(r#"{"Network":"10.5.0.0/16","SubnetLen":25,"Backend":{"Type":"udp"}}"#);
    let told = two.differences(&one);
    assert_eq!(told[0], "SubnetLen 25 for 24");
    assert!(told.last().unwrap().starts_with("Backend udp (Port 8285) for vxlan (VNI 1,"));
}

#[test]
fn defaults() {
    let config = parse(r#""Network":"10.5.0.0/16""#).unwrap();
    assert_eq!(
        config,
        NetworkConfig {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet_len: 24,
            subnet_min: Ipv4Addr::new(10, 5, 1, 0),
            subnet_max: Ipv4Addr::new(10, 5, 255, 0),
            backend: Backend::Vxlan(VxlanConfig {
                vni: 1,
                port: 8472,
                gbp: false,
                learning: false,
                mtu: None,
                direct_routing: false,
            }),
        }
    );
}

#[test]
fn every_setting_is_read() {
    let text = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0",
        "SubnetMax":"10.99.0.0","EnableIPv4":true,"EnableIPv6":false,"EnableNFTables":true,
        "Backend":{"Type":"vxlan","VNI":77,"Port":4789,"GBP":true,"Learning":true,"MTU":1400,
        "DirectRouting":true,"MacPrefix":"0E-2A"}}"#;
    let config = NetworkConfig::parse(text).unwrap();
    assert_eq!(config.subnet_len, 20);
    assert_eq!(config.subnet_min, Ipv4Addr::new(10, 10, 0, 0));
    assert_eq!(config.subnet_max, Ipv4Addr::new(10, 99, 0, 0));
    assert_eq!(
        config.backend,
        Backend::Vxlan(VxlanConfig {
            vni: 77,
            port: 4789,
            gbp: true,
            learning: true,
            mtu: Some(1400),
            direct_routing: true,
        })
    );
}

#[test]
fn keys_and_types_match_in_any_case() {
    let text = r#"{"nEtWoRk":"10.5.0.0/16","SUBNETLEN":25,"backend":{"tYPE":"VXLAN","vni":3}}"#;
    let config = NetworkConfig::parse(text).unwrap();
    assert_eq!(config.subnet_len, 25);
    assert!(matches!(config.backend, Backend::Vxlan(VxlanConfig { vni: 3, .. })));
    // Go's folding reaches the long s and the Kelvin sign too.
    let config = parse("\"Networ\u{212a}\":\"10.5.0.0/16\",\"\u{17f}ubnetLen\":26").unwrap();
    assert_eq!(config.subnet_len, 26);
}

#[test]
fn the_last_duplicate_wins_and_null_changes_nothing() {
    let config = parse(
        r#""Network":"10.4.0.0/16","SubnetLen":28,"network":"10.5.0.0/16","subnetlen":26,
           "SubnetLen":null,"EnableIPv4":null"#,
    )
    .unwrap();
    assert_eq!(config.network, "10.5.0.0/16".parse().unwrap());
    assert_eq!(config.subnet_len, 26);
    let text = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"nope","VNI":9},
        "Backend":{"Type":"nope","type":"vxlan"}}"#;
    let backend = NetworkConfig::parse(text).unwrap().backend;
    let replaced = matches!(backend, Backend::Vxlan(VxlanConfig { vni: 1, .. }));
    assert!(replaced, "the first Backend is replaced as a whole");
}

#[test]
fn unknown_keys_are_ignored() {
    assert!(parse(r#""Network":"10.5.0.0/16","Comment":{"a":[1,2]},"IPv6Network":7"#).is_ok());
}

#[test]
fn half_a_surrogate_pair_is_no_fault() {
    let expected = parse(r#""Network":"10.5.0.0/16""#).unwrap();
    for more in [r#""\ud800":1"#, r#""x":"\udc00""#, r#""Back\u0065nd\ud800":[]"#] {
        assert_eq!(parse(&format!(r#""Network":"10.5.0.0/16",{more}"#)).unwrap(), expected);
    }
    let text = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan\ud800"}}"#;
    let (text, _) = refusal(NetworkConfig::parse(text));
    assert!(text.contains("unknown backend type: vxlan\u{fffd}"), "{text}");
}

#[test]
fn an_address_that_is_mapped_to_ipv6_is_ipv4() {
    let read = parse(r#""Network":"10.5.0.0/16","SubnetMin":"::ffff:10.5.9.0""#).unwrap();
    assert_eq!(read.subnet_min, Ipv4Addr::new(10, 5, 9, 0));
}

#[test]
fn host_bits_are_masked() {
    let config = parse(r#""Network":"10.5.7.9/16""#).unwrap();
    assert_eq!(config.network.to_string(), "10.5.0.0/16");
    assert_eq!(config.subnet_min, Ipv4Addr::new(10, 5, 1, 0));
}

#[test]
fn default_subnet_lengths() {
    for (network, len, min, max) in [
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
        ("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
        ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
        ("128.0.0.0/1", 24, "128.0.1.0", "255.255.255.0"),
        ("0.0.0.0/8", 24, "0.0.1.0", "0.255.255.0"),
    ] {
        let config = parse(&format!(r#""Network":"{network}""#)).unwrap();
        assert_eq!(config.subnet_len, len, "{network}");
        assert_eq!(config.subnet_min.to_string(), min, "{network}");
        assert_eq!(config.subnet_max.to_string(), max, "{network}");
    }
    let config = parse(r#""Network":"128.0.0.0/1","SubnetLen":3"#).unwrap();
    assert_eq!(config.subnet_min.to_string(), "160.0.0.0");
}

#[test]
fn a_minimum_above_the_maximum_is_accepted() {
    let text = r#""Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.2.0""#;
    assert!(parse(text).is_ok());
    let config = parse(r#""Network":"10.5.0.0/16","SubnetMin":"0.0.0.0""#).unwrap();
    assert_eq!(config.subnet_min.to_string(), "10.5.1.0", "0.0.0.0 means the default");
}

/// Members of a config, how the refusal begins, and the key that it is filed under.
const NETWORK_REFUSALS: &[(&str, &str, &str)] = &[
    (r#""x":1"#, "please define a correct Network parameter in the flannel config", "Network"),
    (
        r#""Network":"0.0.0.0/0""#,
        "please define a correct Network parameter in the flannel config",
        "Network",
    ),
    (r#""Network":"10.5.0.0""#, "invalid CIDR address: 10.5.0.0", "Network"),
    (r#""Network":"10.5.0.0/33""#, "invalid CIDR address: 10.5.0.0/33", "Network"),
    (r#""Network":"10.5.0.0/+8""#, "invalid CIDR address: 10.5.0.0/+8", "Network"),
    (r#""Network":"10.5.0/16""#, "invalid CIDR address: 10.5.0/16", "Network"),
    (r#""Network":null"#, "invalid CIDR address: null", "Network"),
    (r#""Network":[]"#, "invalid CIDR address: []", "Network"),
    (r#""Network":"fd00::/48""#, "Address is not an IPv4 address", "Network"),
    (
        r#""Network":"10.5.0.0/29""#,
        "network is too small. Minimum useful network prefix is /28",
        "Network",
    ),
    (r#""Network":"10.5.0.0/16","SubnetLen":31"#, "SubnetLen must be less than /31", "SubnetLen"),
    (
        r#""Network":"10.5.0.0/16","SubnetLen":99999999999"#,
        "SubnetLen must be less than /31",
        "SubnetLen",
    ),
    (
        r#""Network":"10.5.0.0/16","SubnetLen":17"#,
        "network must be able to accommodate at least four subnets",
        "SubnetLen",
    ),
    (
        r#""Network":"10.5.0.0/16","SubnetLen":"24""#,
        "json: cannot unmarshal string into Go struct field Config.SubnetLen of type uint",
        "SubnetLen",
    ),
    (
        r#""Network":"10.5.0.0/16","SubnetLen":-1"#,
        "json: cannot unmarshal number -1 into Go struct field Config.SubnetLen of type uint",
        "SubnetLen",
    ),
    (
        r#""Network":"10.5.0.0/16","SubnetLen":24.0"#,
        "json: cannot unmarshal number 24.0 into Go struct field Config.SubnetLen of type uint",
        "SubnetLen",
    ),
    (
        r#""Network":"10.5.0.0/16","SubnetMin":"10.6.0.0""#,
        "SubnetMin is not in the range of the Network",
        "SubnetMin",
    ),
    (
        r#""Network":"10.5.0.0/16","SubnetMax":"10.6.0.0""#,
        "SubnetMax is not in the range of the Network",
        "SubnetMax",
    ),
    (
        r#""Network":"10.5.0.0/16","SubnetMin":"10.5.1.1""#,
        "SubnetMin is not on a SubnetLen boundary: 10.5.1.1",
        "SubnetMin",
    ),
    (
        r#""Network":"10.5.0.0/16","SubnetMax":"10.5.9.128""#,
        "SubnetMax is not on a SubnetLen boundary: 10.5.9.128",
        "SubnetMax",
    ),
    (r#""SubnetMin":"here""#, "Invalid IP address format", "SubnetMin"),
    (r#""SubnetMax":"fd00::""#, "Address is not an IPv4 address", "SubnetMax"),
    (
        r#""EnableIPv4":"yes""#,
        "json: cannot unmarshal string into Go struct field Config.EnableIPv4 of type bool",
        "EnableIPv4",
    ),
    (
        r#""EnableIPv6":1"#,
        "json: cannot unmarshal number into Go struct field Config.EnableIPv6 of type bool",
        "EnableIPv6",
    ),
    (
        r#""Network":"10.5.0.0/16","EnableIPv6":true"#,
        "EnableIPv6=true is not supported yet",
        "EnableIPv6",
    ),
    (r#""EnableIPv4":false"#, "EnableIPv4=false is not supported yet", "EnableIPv4"),
];

#[test]
fn network_refusals() {
    for (members, message, key) in NETWORK_REFUSALS {
        let (text, filed) = refusal(parse(members));
        assert!(text.starts_with(message), "{members}: {text}");
        assert_eq!(filed, *key, "{members}");
    }
}

#[test]
fn malformed_documents() {
    for (text, message) in [
        ("garbage", "invalid character 'g' looking for beginning of value"),
        ("{\n \"Network\": 'x'}", "invalid character ''' looking for beginning of value"),
        ("\u{feff}{}", "invalid character '\\u{feff}' looking for beginning of value"),
        ("", "unexpected end of JSON input"),
        ("{\"Network\":", "unexpected end of JSON input"),
        ("{} x", "invalid JSON: trailing characters at line 1 column 4"),
        ("[]", "json: cannot unmarshal array into Go value of type subnet.Config"),
        ("7", "json: cannot unmarshal number into Go value of type subnet.Config"),
        ("null", "please define a correct Network parameter in the flannel config"),
    ] {
        let (shown, _) = refusal(NetworkConfig::parse(text));
        assert!(shown.starts_with(message), "{text:?}: {shown}");
    }
}

#[test]
fn backend_refusals() {
    let cases = [
        (r#","Backend":{"Type":"nope"}"#, "unknown backend type: nope", "Backend.Type"),
        (r#","Backend":{}"#, "unknown backend type: ", "Backend.Type"),
        (r#","Backend":null"#, "unknown backend type: ", "Backend.Type"),
        (r#","Backend":{"Type":"IPIP"}"#, "Backend.Type ipip is not supported", "Backend.Type"),
        (
            r#","Backend":{"Type":"wireguard"}"#,
            "Backend.Type wireguard is not supported",
            "Backend.Type",
        ),
        (r#","Backend":{"Type":"gce"}"#, "Backend.Type gce is not supported", "Backend.Type"),
        (
            r#","Backend":"vxlan""#,
            "error decoding Backend property of config: json: cannot unmarshal string into \
             Go value of type struct { Type string }",
            "Backend",
        ),
        (
            r#","Backend":{"Type":7}"#,
            "error decoding Backend property of config: json: cannot unmarshal number into \
             Go struct field .Type of type string",
            "Backend",
        ),
    ];
    for (backend, message, key) in cases {
        let text = format!(r#"{{"Network":"10.5.0.0/16"{backend}}}"#);
        let (shown, filed) = refusal(NetworkConfig::parse(&text));
        assert!(shown.starts_with(message), "{backend}: {shown}");
        assert_eq!(filed, key, "{backend}");
        if filed == "Backend.Type" {
            assert!(shown.contains("supported: vxlan, host-gw, udp, alloc"), "{shown}");
        }
    }
}

#[test]
fn vxlan_bounds() {
    assert_eq!(vxlan(r#","VNI":0"#).unwrap().vni, 0);
    assert_eq!(vxlan(r#","VNI":9999999"#).unwrap().vni, MAX_VNI);
    assert_eq!(vxlan(r#","Port":0"#).unwrap().port, 8472);
    assert_eq!(vxlan(r#","Port":65535"#).unwrap().port, 65535);
    assert_eq!(vxlan(r#","MTU":0"#).unwrap().mtu, None);
    assert_eq!(vxlan(r#","MTU":118"#).unwrap().mtu, Some(118));
    for (setting, key) in [
        (r#","VNI":16777216"#, "Backend.VNI"),
        (r#","VNI":10000000"#, "Backend.VNI"),
        (r#","VNI":-1"#, "Backend.VNI"),
        (r#","Port":65536"#, "Backend.Port"),
        (r#","Port":-1"#, "Backend.Port"),
        (r#","MTU":117"#, "Backend.MTU"),
        (r#","MTU":65536"#, "Backend.MTU"),
    ] {
        let (shown, filed) = refusal(vxlan(setting));
        assert!(shown.contains("is out of range"), "{setting}: {shown}");
        assert_eq!(filed, key);
    }
}

#[test]
fn vxlan_refusals() {
    let prefix = "error decoding VXLAN backend config: json: cannot unmarshal";
    for (setting, message) in [
        (r#","VNI":"1""#, "string into Go struct field VXLANConfig.VNI of type int"),
        (r#","vni":"1""#, "string into Go struct field VXLANConfig.VNI of type int"),
        (r#","VNI":1.5"#, "number 1.5 into Go struct field VXLANConfig.VNI of type int"),
        (r#","Port":{}"#, "object into Go struct field VXLANConfig.Port of type int"),
        (r#","MTU":true"#, "bool into Go struct field VXLANConfig.MTU of type int"),
        (r#","GBP":"true""#, "string into Go struct field VXLANConfig.GBP of type bool"),
        (r#","Learning":1"#, "number into Go struct field VXLANConfig.Learning of type bool"),
        (
            r#","DirectRouting":[]"#,
            "array into Go struct field VXLANConfig.DirectRouting of type bool",
        ),
    ] {
        assert_eq!(refusal(vxlan(setting)).0, format!("{prefix} {message}"));
    }
}

#[test]
fn the_other_backends() {
    let backend = |backend: &str| {
        let text = format!(r#"{{"Network":"10.5.0.0/16"{backend}}}"#);
        NetworkConfig::parse(&text).map(|config| config.backend)
    };
    let of = |settings: &str| backend(&format!(r#","Backend":{{{settings}}}"#));
    let udp = |port| Ok(Backend::Udp(UdpConfig { port }));
    assert_eq!(backend(""), udp(8285), "as flannel has it");
    assert_eq!(of(r#""Type":"UDP""#), udp(8285));
    assert_eq!(of(r#""Type":"udp","pOrT":9000"#), udp(9000));
    assert_eq!(of(r#""Type":"udp","Port":null"#), udp(8285));
    assert_eq!(of(r#""Type":"Host-GW","VNI":"of no meaning here""#), Ok(Backend::HostGw));
    assert_eq!(of(r#""Type":"alloc""#), Ok(Backend::Alloc));
    for kind in ["vxlan", "host-gw", "udp", "alloc"] {
        assert_eq!(of(&format!(r#""Type":"{kind}""#)).unwrap().kind().name(), kind);
        assert!(BackendKind::supported().split(", ").any(|supported| supported == kind));
    }
    let (shown, key) = refusal(of(r#""Type":"udp","Port":"8285""#));
    let wanted = "error decoding UDP backend config: json: cannot unmarshal string into \
                  Go struct field .Port of type int";
    assert_eq!((shown.as_str(), key.as_str()), (wanted, "Backend.Port"));
    for port in [0, -1, 65536] {
        let (shown, key) = refusal(of(&format!(r#""Type":"udp","Port":{port}"#)));
        assert!(shown.contains("is out of range: 1 to 65535"), "{shown}");
        assert_eq!(key, "Backend.Port");
    }
}

#[test]
fn messages_stay_on_one_short_line() {
    let long = "x\\n".repeat(5000);
    let (shown, _) = refusal(parse(&format!(r#""Network":"{long}""#)));
    assert!(shown.len() < 300 && !shown.contains('\n'), "{shown}");
}

/// Any JSON, with keys that mean something often enough.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".*".prop_map(Into::into),
        (any::<[u8; 4]>(), 0u8..40).prop_map(|(address, prefix)| {
            format!("{}/{prefix}", Ipv4Addr::from(address)).into()
        }),
        any::<[u8; 4]>().prop_map(|address| Ipv4Addr::from(address).to_string().into()),
        (0u8..40).prop_map(Into::into),
    ];
    let key = prop_oneof![
        prop::sample::select(vec![
            "Network",
            "SubnetLen",
            "SubnetMin",
            "SubnetMax",
            "EnableIPv4",
            "Backend",
            "Type",
            "VNI",
            "Port",
            "MTU",
            "GBP",
        ])
        .prop_map(str::to_owned),
        ".*",
    ];
    leaf.prop_recursive(3, 32, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::hash_map(key.clone(), inner, 0..10)
                .prop_map(|members| { serde_json::Value::Object(members.into_iter().collect()) }),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_json_never_panics(value in json()) {
        let _ = NetworkConfig::parse(&value.to_string());
    }

    #[test]
    fn arbitrary_text_never_panics(text in ".*") {
        let _ = NetworkConfig::parse(&text);
        let _ = NetworkConfig::parse(&format!("{{\"Network\":{text}"));
    }

    #[test]
    fn accepted_ranges_lie_in_the_network(
        address: [u8; 4],
        prefix in 0u8..=32,
        len in 0u8..=32,
        min in proptest::option::of(any::<[u8; 4]>()),
    ) {
        let min = min.map_or(String::new(), |min| {
            format!(r#","SubnetMin":"{}""#, Ipv4Addr::from(min))
        });
        let address = Ipv4Addr::from(address);
        if let Ok(config) =
            parse(&format!(r#""Network":"{address}/{prefix}","SubnetLen":{len}{min}"#))
        {
            for end in [config.subnet_min, config.subnet_max] {
                prop_assert!(config.network.contains(end));
                let subnet = Ipv4Network::new(end, config.subnet_len).unwrap();
                prop_assert_eq!(subnet.network(), end);
            }
            prop_assert!(config.subnet_len >= config.network.prefix() + 2);
        }
    }
}
