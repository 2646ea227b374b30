//! Every flag of flanneld, in every form.

use super::*;

/// Flags of flanneld 0.28.9 in etcd mode and in the other one, with a value
/// that is not the default. Boolean flags take theirs with an equals sign only.
const HEAD: [(&str, &str); 33] = [
    ("etcd-endpoints", "http://192.0.2.1:2379"),
    ("etcd-prefix", "/kube-centos/network"),
    ("etcd-keyfile", "/key"),
    ("etcd-certfile", "/cert"),
    ("etcd-cafile", "/ca"),
    ("etcd-username", "u"),
    ("etcd-password", "p"),
    ("kube-subnet-mgr", "false"),
    ("kube-api-url", "https://192.0.2.1:6443"),
    ("kubeconfig-file", "/kubeconfig"),
    ("kube-annotation-prefix", "flannel.example.com"),
    ("net-config-path", "/net-conf.json"),
    ("set-node-network-unavailable", "false"),
    ("iface", "eth2"),
    ("iface-regex", "^10[.]"),
    ("iface-can-reach", "192.0.2.1"),
    ("public-ip", "192.0.2.1"),
    ("public-ipv6", "2001:db8::1"),
    ("subnet-file", "/subnet.env"),
    ("subnet-lease-renew-margin", "90"),
    ("ip-masq", "true"),
    ("ip-masq-fully-random-disable", "true"),
    ("iptables-resync", "30"),
    ("iptables-forward-rules", "false"),
    ("ip-blackhole-route", "true"),
    ("healthz-ip", "127.0.0.1"),
    ("healthz-port", "8081"),
    ("v", "4"),
    ("vmodule", "a=1"),
    ("log_backtrace_at", "a.go:1"),
    ("version", "true"),
    ("help", ""),
    ("h", ""),
];

/// Flags of flanneld 0.11.
const V0_11: [&str; 25] = [
    "etcd-endpoints",
    "etcd-prefix",
    "etcd-keyfile",
    "etcd-certfile",
    "etcd-cafile",
    "etcd-username",
    "etcd-password",
    "iface",
    "iface-regex",
    "subnet-file",
    "public-ip",
    "subnet-lease-renew-margin",
    "ip-masq",
    "kube-subnet-mgr",
    "kube-api-url",
    "kube-annotation-prefix",
    "kubeconfig-file",
    "version",
    "healthz-ip",
    "healthz-port",
    "iptables-resync",
    "iptables-forward-rules",
    "v",
    "vmodule",
    "log_backtrace_at",
];

/// Flags of flanneld 0.5.5 that later ones have, too.
const V0_5: [&str; 14] = [
    "public-ip",
    "etcd-endpoints",
    "etcd-prefix",
    "etcd-keyfile",
    "etcd-certfile",
    "etcd-cafile",
    "subnet-file",
    "iface",
    "ip-masq",
    "help",
    "version",
    "v",
    "vmodule",
    "log_backtrace_at",
];

const ENDING: [&str; 3] = ["version", "help", "h"];
const LOGGING: [&str; 3] = ["v", "vmodule", "log_backtrace_at"];
const BOOLEAN: [&str; 6] = [
    "kube-subnet-mgr",
    "set-node-network-unavailable",
    "ip-masq",
    "ip-masq-fully-random-disable",
    "iptables-forward-rules",
    "ip-blackhole-route",
];

fn shown(options: &Options) -> String {
    let password = options.etcd.password.as_ref().map(Secret::expose);
    format!("{options:?} {password:?}")
}

#[test]
fn every_flag_has_the_same_effect_in_every_form() {
    let plain = shown(&daemon(&[]));
    for (name, value) in HEAD.iter().filter(|(name, _)| !ENDING.contains(name)) {
        let mut forms = vec![vec![format!("-{name}={value}")], vec![format!("--{name}={value}")]];
        if !BOOLEAN.contains(name) {
            forms.push(vec![format!("-{name}"), (*value).to_owned()]);
            forms.push(vec![format!("--{name}"), (*value).to_owned()]);
        } else if *value == "true" {
            forms.push(vec![format!("-{name}")]);
        }
        let mut effects = Vec::new();
        for form in forms {
            let form: Vec<&str> = form.iter().map(String::as_str).collect();
            let (cli, klog) =
                run(&form, &[]).unwrap_or_else(|exit| panic!("{form:?}: {}", exit.text));
            assert_eq!(LOGGING.contains(name), !klog.written.is_empty(), "{form:?}");
            effects.push(shown(&cli.daemon));
        }
        let (cli, _) = run(&[], &[(&go_style::variable(name), value)])
            .unwrap_or_else(|exit| panic!("{name} in the environment: {}", exit.text));
        effects.push(shown(&cli.daemon));
        assert!(effects.iter().all(|effect| *effect == effects[0]), "{name}: {effects:#?}");
        assert_eq!(LOGGING.contains(name), effects[0] == plain, "--{name}={value}");
    }
    for name in ENDING {
        assert_eq!(refused(&[&format!("-{name}")]).code, 0, "{name}");
    }
}

#[test]
fn the_flags_of_earlier_versions_are_among_them() {
    for name in V0_11.iter().chain(&V0_5) {
        assert!(HEAD.iter().any(|(known, _)| known == name), "{name}");
    }
}

#[test]
fn the_documentation_has_every_flag_of_flanneld() {
    let text = include_str!("../../../../docs/configuration.md");
    let given_up = ["subnet-dir", "networks", "listen", "remote", "remote-keyfile"];
    for name in HEAD.iter().map(|(name, _)| *name).chain(given_up) {
        let mut spelt = ["`--", "`-", "`"]
            .into_iter()
            .flat_map(|dashes| ["`", " "].map(|end| format!("{dashes}{name}{end}")));
        assert!(spelt.any(|spelt| text.contains(&spelt)), "{name}");
    }
}

#[test]
fn defaults_are_flannels() {
    let options = daemon(&[]);
    assert!(options.underlay.iface_regex.is_empty());
    assert_eq!(options.underlay.can_reach, None);
    assert_eq!((options.healthz.host.as_str(), options.healthz.port()), ("0.0.0.0", None));
    assert!(options.rules.forward);
    assert!(!options.rules.fully_random_disable);
    assert!(!options.ip_blackhole_route);
    assert_eq!(options.without_effect.given(), Vec::<String>::new());
}

#[test]
fn iface_and_iface_regex_are_repeatable_but_not_in_the_environment() {
    let options = daemon(&["-iface-regex=^a,b$", "--iface-regex", "c", "-iface=x", "-iface=y"]);
    let patterns: Vec<_> = options.underlay.iface_regex.iter().map(regex::Regex::as_str).collect();
    assert_eq!(patterns, ["^a,b$", "c"]);
    assert_eq!(options.underlay.iface, ["x", "y"]);
    let env = [("FLANNELD_IFACE_REGEX", "eth1,eth2"), ("FLANNELD_IFACE", "eth1,eth2")];
    let (cli, _) = run(&[], &env).unwrap();
    assert_eq!(cli.daemon.underlay.iface, ["eth1,eth2"]);
    assert_eq!(cli.daemon.underlay.iface_regex.len(), 1);
    let (cli, _) = run(&["-iface-regex=x", "-iface-regex=y"], &env).unwrap();
    assert_eq!(cli.daemon.underlay.iface_regex.len(), 2, "the command line goes first");
}

#[test]
fn the_health_port() {
    assert_eq!(daemon(&["-healthz-port=8081"]).healthz.port(), Some(8081));
    // flanneld listens on ports above 0 only.
    assert_eq!(daemon(&["-healthz-port", "-1"]).healthz.port(), None);
    assert_eq!(refused(&["-healthz-port=65536"]).code, 2);
    assert_eq!(refused(&["-healthz-port=http"]).code, 2);
}

#[test]
fn what_cannot_be_had_is_refused_with_a_way_out() {
    for (args, hint) in [
        (&["-kube-subnet-mgr"][..], "--etcd-endpoints"),
        (&["--kube-subnet-mgr=true"], "Kubernetes API"),
        (&["-subnet-dir=/run/flannel/networks"], "one daemon for each network"),
        (&["-networks=a,b"], "one daemon for each network"),
        (&["-listen", "0.0.0.0:8888"], "server mode"),
        (&["-remote=192.0.2.1:8888"], "--etcd-endpoints"),
        (&["-remote-keyfile=/k", "-remote-certfile=/c", "-remote-cafile=/a"], "client mode"),
        (&["-iface-regex=("], "unclosed group"),
        (&["-iface-can-reach=etcd.example.com"], "--iface-can-reach"),
        (&["-public-ipv6=192.0.2.1"], "--public-ipv6"),
        (&["-ifaces=eth0"], "--iface"),
    ] {
        let exit = refused(args);
        assert_eq!((exit.code, exit.stream), (2, Stream::Err), "{args:?}");
        assert!(exit.text.contains(hint), "{args:?}: {}", exit.text);
    }
    let env = [("FLANNELD_KUBE_SUBNET_MGR", "true")];
    let exit = run(&[], &env).map(|_| ()).unwrap_err();
    assert!(exit.code == 2 && exit.text.contains("Kubernetes API"), "{}", exit.text);
    assert!(run(&["status"], &env).is_ok(), "status does not need the daemon's flags");
    assert!(run(&["-kube-subnet-mgr=false"], &env).is_ok());
}

#[test]
fn flags_without_effect_are_told() {
    let options = daemon(&["-kube-api-url=https://a", "-iptables-resync=30", "-public-ipv6=::1"]);
    let given = options.without_effect.given();
    assert_eq!(given.len(), 3, "{given:?}");
    assert!(given[0].starts_with("--kube-api-url "), "{given:?}");
    for (name, value) in HEAD {
        let effect = run(&[&format!("-{name}={value}")], &[])
            .map_or(0, |(cli, _)| cli.daemon.without_effect.given().len());
        let expected = name.starts_with("kube")
            || ["net-config-path", "set-node-network-unavailable", "public-ipv6"].contains(&name)
            || name == "iptables-resync";
        assert_eq!(effect, usize::from(expected), "{name}");
    }
}

#[test]
fn words_end_the_flags_as_in_go_and_empty_ones_are_nothing() {
    let read = |args: &[&str]| run(args, &[]).unwrap().0;
    // A unit's `ExecStart=/usr/bin/flanneld -ip-masq ${FLANNEL_OPTIONS} -iface=eth1`.
    let cli = read(&["", "-ip-masq", "", "-iface=eth1", ""]);
    assert!(cli.daemon.rules.masquerade && cli.warnings.is_empty());
    assert_eq!(cli.daemon.underlay.iface, ["eth1"]);
    for end in ["word", "-", "--"] {
        let line = &["-ip-masq", end, "-iface=eth1"];
        let cli = read(line);
        assert!(cli.daemon.rules.masquerade && cli.daemon.underlay.iface.is_empty());
        assert!(cli.warnings[0].contains("-iface=eth1` at the end"), "{:?}", cli.warnings);
    }
    assert_eq!(read(&["-v=4", "word"]).warnings.len(), 1);
    assert_eq!(read(&["-", "-iface=eth1"]).daemon.underlay.iface, [""; 0]);
    assert_eq!(read(&["-ip-masq", "--"]).warnings, [""; 0]);
    // A command that was misspelt, or comes too late, is no daemon.
    for line in [&["statsu"][..], &["-ip-masq", "status"]] {
        assert_eq!(refused(line).code, 2, "{line:?}");
    }
}

#[test]
fn a_password_in_an_endpoint_is_told_of_and_not_shown() {
    let line = ["-etcd-endpoints=http://root:hunter2@192.0.2.1:2379/v3,HTTP://192.0.2.2"];
    let warnings = run(&line, &[]).unwrap().0.warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("--etcd-endpoints http://192.0.2.1:2379/v3 have no effect"));
    assert!(!warnings[0].contains("hunter2"));
}

#[test]
fn wrong_values_of_the_environment_are_left_out_as_flanneld_does() {
    let env = [
        ("FLANNELD_IP_MASQ", "yes"),
        ("FLANNELD_HEALTHZ_PORT", "eighty"),
        ("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "0x5"),
        ("FLANNELD_IPTABLES_RESYNC", "soon"),
    ];
    let cli = run(&[], &env).unwrap().0;
    assert!(!cli.daemon.rules.masquerade);
    assert_eq!(cli.daemon.healthz.port(), None);
    assert_eq!(cli.daemon.lease.renew_margin(), Duration::from_secs(5 * 60));
    let named = |name: &str| cli.warnings.iter().any(|warning| warning.contains(name));
    assert_eq!(cli.warnings.len(), 3, "{:?}", cli.warnings);
    assert!(named("FLANNELD_IP_MASQ=yes") && named("FLANNELD_HEALTHZ_PORT=eighty"));
    // Out of range, and what is no flag of flanneld's, is an error as before.
    let range = [("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "9999")];
    assert_eq!(run(&[], &range).unwrap_err().code, 1);
    assert_eq!(run(&[], &[("FLANNELD_DATAPATH", "ebfp")]).unwrap_err().code, 2);
}

#[test]
fn numbers_are_read_as_go_reads_them() {
    for (text, expected) in [
        ("5", Some(5)),
        ("0x5", Some(5)),
        ("0X1F", Some(31)),
        ("017", Some(15)),
        ("0o17", Some(15)),
        ("0b101", Some(5)),
        ("1_000", Some(1000)),
        ("0x_1f", Some(31)),
        ("-0x10", Some(-16)),
        ("+7", Some(7)),
        ("0", Some(0)),
        ("", None),
        ("08", None),
        ("5s", None),
        ("_5", None),
        ("5_", None),
        ("1__0", None),
        ("0x", None),
        ("--5", None),
        ("0x-5", None),
        ("0_-5", None),
        ("9223372036854775808", None),
    ] {
        assert_eq!(crate::flag::go_int(text).ok(), expected, "{text}");
    }
    assert_eq!(daemon(&["-healthz-port=0x1F90"]).healthz.port(), Some(8080));
    assert_eq!(refused(&["-healthz-port=65536"]).code, 2);
}
