mod flannel;

use std::net::Ipv4Addr;
use std::path::Path;

use flannel_core::status::PacketRulesMode;

use super::*;
use crate::bpf::{AttachMode, FastPath, VerifySource, XdpMode};
use crate::flag::Secret;

fn run(args: &[&str], env: &[(&str, &str)]) -> Result<(Cli, Klog), Exit> {
    let argv = std::iter::once("flanneld").chain(args.iter().copied()).map(OsString::from);
    parse(argv, |name| {
        env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    })
}

fn daemon(args: &[&str]) -> Options {
    let (cli, _) = run(args, &[]).unwrap_or_else(|exit| panic!("{args:?}: {}", exit.text));
    assert!(cli.command.is_none());
    cli.daemon
}

fn refused(args: &[&str]) -> Exit {
    run(args, &[]).map(|(cli, _)| format!("{cli:?}")).unwrap_err()
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn defaults() {
    let options = daemon(&[]);
    assert_eq!(options.etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(options.etcd.prefix, "/coreos.com/network");
    for file in [&options.etcd.ca_file, &options.etcd.cert_file, &options.etcd.key_file] {
        assert_eq!(*file, None);
    }
    assert_eq!(options.etcd.username, None);
    assert_eq!(options.etcd.password, None);
    assert!(options.underlay.iface.is_empty());
    assert_eq!(options.underlay.public_ip, None);
    assert_eq!(options.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert!(!options.rules.masquerade);
    assert_eq!(options.datapath, DatapathMode::Auto);
    assert_eq!(options.firewall, crate::firewall::Mode::Auto);
    assert_eq!(options.fast_path.mode, FastPath::Confirmed);
    assert_eq!(options.fast_path.packet_rules, PacketRulesMode::Respect);
    assert_eq!(options.fast_path.window, Duration::from_secs(5));
    assert_eq!(options.programs.verify_source, VerifySource::Drop);
    assert_eq!(options.programs.attach, AttachMode::Auto);
    assert_eq!(options.programs.xdp, XdpMode::Auto);
    assert!(options.programs.attach_iface.is_none());
    assert_eq!(options.programs.pin_dir, Path::new("/sys/fs/bpf/flannel"));
    assert_eq!(options.state_dir, Path::new("/var/lib/flannel-ebpf"));
    assert_eq!(options.resync_interval, Duration::from_secs(60));
    assert_eq!(options.lease.renew_margin(), Duration::from_secs(3600));
}

#[test]
fn help_is_a_word_too() {
    for (args, what) in [
        (&["help"][..], "Usage: flannel-agent [OPTIONS]"),
        (&["help", "status"], "Usage: flannel-agent status [OPTIONS]"),
        (&["help", "nosuch"], "unrecognized subcommand 'nosuch'"),
    ] {
        let exit = run(args, &[]).map(|(cli, _)| format!("{cli:?}")).unwrap_err();
        assert!(exit.text.contains(what), "{}", exit.text);
    }
}

#[test]
fn what_is_wrong_is_told_without_the_environments_flags() {
    let env = [("FLANNELD_ETCD_PREFIX", "/a")];
    for (args, what) in
        [(&["run"][..], "unrecognized subcommand 'run'"), (&["--nosuch"], "'--nosuch'")]
    {
        let exit = run(args, &env).map(|(cli, _)| format!("{cli:?}")).unwrap_err();
        assert!(exit.text.contains(what) && exit.code == 2, "{}", exit.text);
        assert!(!exit.text.contains("etcd-prefix"), "{}", exit.text);
        assert!(exit.text.contains("Usage: flannel-agent [OPTIONS]\n"), "{}", exit.text);
    }
    let exit = run(&["trace", "10.5.1.2"], &env).map(|(cli, _)| format!("{cli:?}")).unwrap_err();
    let usage = "Usage: flannel-agent trace [OPTIONS] <SOURCE> <DESTINATION> [PROTOCOL] [PORT]\n";
    assert!(exit.text.contains(usage) && !exit.text.contains("taken from"), "{}", exit.text);
    let exit = run(&["events", "--since=yesterday"], &env).map(|(cli, _)| format!("{cli:?}"));
    let text = exit.unwrap_err().text;
    assert!(text.contains("expected a time such as 30s, 10m or 2h"), "{text}");
}

#[test]
fn all_four_forms_of_a_flag() {
    for args in [
        &["-etcd-prefix=/a"][..],
        &["--etcd-prefix=/a"],
        &["-etcd-prefix", "/a"],
        &["--etcd-prefix", "/a"],
    ] {
        assert_eq!(daemon(args).etcd.prefix, "/a", "{args:?}");
    }
}

#[test]
fn every_flag_is_read() {
    let options = daemon(&[
        "-etcd-endpoints=https://a:2379,https://b:2379",
        "-etcd-cafile=/ca",
        "-etcd-certfile=/cert",
        "-etcd-keyfile=/key",
        "-etcd-username=u",
        "-etcd-password=p=q",
        "-iface=eth1",
        "-iface",
        "10.0.0.9",
        "-public-ip=::ffff:192.0.2.7",
        "-subnet-file=/tmp/s",
        "-ip-masq",
        "-datapath=kernel",
        "-fast-path=off",
        "-packet-rules=ignore",
        "-fast-path-window=500ms",
        "-verify-source=count",
        "-attach=clsact",
        "-xdp=native",
        "-attach-iface=^veth",
        "-pin-dir=/p",
        "-state-dir=/s",
        "-resync-interval=7",
        "-subnet-lease-renew-margin=1439",
    ]);
    assert_eq!(options.etcd.endpoints, ["https://a:2379", "https://b:2379"]);
    assert_eq!(options.etcd.ca_file.as_deref(), Some(Path::new("/ca")));
    assert_eq!(options.etcd.cert_file.as_deref(), Some(Path::new("/cert")));
    assert_eq!(options.etcd.key_file.as_deref(), Some(Path::new("/key")));
    assert_eq!(options.etcd.username.as_deref(), Some("u"));
    assert_eq!(options.etcd.password.as_ref().map(Secret::expose), Some("p=q"));
    assert_eq!(options.underlay.iface, ["eth1", "10.0.0.9"]);
    assert_eq!(options.underlay.public_ip, Some(Ipv4Addr::new(192, 0, 2, 7)));
    assert_eq!(options.subnet_file, Path::new("/tmp/s"));
    assert!(options.rules.masquerade);
    assert_eq!(options.datapath, DatapathMode::Kernel);
    assert_eq!(options.fast_path.mode, FastPath::Off);
    assert_eq!(options.fast_path.packet_rules, PacketRulesMode::Ignore);
    assert_eq!(options.fast_path.window, Duration::from_millis(500));
    assert_eq!(options.programs.verify_source, VerifySource::Count);
    assert_eq!(options.programs.attach, AttachMode::Clsact);
    assert_eq!(options.programs.xdp, XdpMode::Native);
    assert!(options.programs.attach_iface.as_ref().unwrap().is_match("veth3"));
    assert_eq!(options.programs.pin_dir, Path::new("/p"));
    assert_eq!(options.state_dir, Path::new("/s"));
    assert_eq!(options.resync_interval, Duration::from_secs(7));
    assert_eq!(options.lease.renew_margin(), Duration::from_secs(1439 * 60));
    assert!(!format!("{options:?}").contains("p=q"), "the password is not for logs");
}

#[test]
fn booleans_as_in_go() {
    for (args, expected) in [
        (&["-ip-masq"][..], true),
        (&["--ip-masq"], true),
        (&["-ip-masq=false"], false),
        (&["--ip-masq=0"], false),
        (&["-ip-masq=T"], true),
        (&["-ip-masq", "-ip-masq=false"], false),
    ] {
        assert_eq!(daemon(args).rules.masquerade, expected, "{args:?}");
    }
    let exit = refused(&["-ip-masq", "false"]);
    assert_eq!((exit.code, exit.stream), (2, Stream::Err));
    assert!(exit.text.contains("--ip-masq=false"), "{}", exit.text);
    assert_eq!(refused(&["-ip-masq=perhaps"]).code, 2);
    assert_eq!(refused(&["-ip-masq="]).code, 2);
}

#[test]
fn values_may_begin_with_a_dash() {
    let options = daemon(&["-etcd-password", "-secret", "-etcd-username", "-1"]);
    assert_eq!(options.etcd.password.as_ref().map(Secret::expose), Some("-secret"));
    assert_eq!(options.etcd.username.as_deref(), Some("-1"));
    let exit = refused(&["-etcd-prefix", "-ip-masq"]);
    assert_eq!(exit.code, 2);
    assert!(exit.text.contains("--etcd-prefix"), "{}", exit.text);
}

#[test]
fn the_last_of_several_wins() {
    let options = daemon(&[
        "-etcd-prefix=/a",
        "--etcd-prefix",
        "/b",
        "-etcd-endpoints=a,b",
        "-etcd-endpoints=c",
    ]);
    assert_eq!(options.etcd.prefix, "/b");
    assert_eq!(options.etcd.endpoints, ["c"]);
}

#[test]
fn an_empty_value_means_not_set() {
    let options = daemon(&[
        "-etcd-cafile=",
        "-etcd-keyfile",
        "",
        "-iface=",
        "-public-ip=",
        "-subnet-file=",
        "-etcd-prefix=/a",
        "-etcd-prefix=",
    ]);
    assert_eq!((options.etcd.ca_file, options.etcd.key_file), (None, None));
    assert!(options.underlay.iface.is_empty());
    assert_eq!(options.underlay.public_ip, None);
    assert_eq!(options.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert_eq!(options.etcd.prefix, "/coreos.com/network");
}

#[test]
fn the_environment_sets_what_the_command_line_does_not() {
    let env = [
        ("FLANNELD_ETCD_ENDPOINTS", "http://a:1,http://b:2"),
        ("FLANNELD_ETCD_PREFIX", "/env"),
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_IFACE", "eth1"),
        ("FLANNELD_ETCD_CAFILE", ""),
        ("FLANNELD_ETCD_PASSWORD", "-x"),
        ("FLANNELD_FAST_PATH_WINDOW", "7"),
        ("FLANNELD_VERSION", "v0.11.0"),
        ("FLANNELD_V", "4"),
    ];
    let (cli, klog) = run(&["--etcd-prefix=/line"], &env).unwrap();
    assert_eq!(cli.daemon.etcd.endpoints, ["http://a:1", "http://b:2"]);
    assert_eq!(cli.daemon.etcd.prefix, "/line");
    assert!(cli.daemon.rules.masquerade);
    assert_eq!(cli.daemon.underlay.iface, ["eth1"]);
    assert_eq!(cli.daemon.etcd.ca_file, None);
    assert_eq!(cli.daemon.etcd.password.as_ref().map(Secret::expose), Some("-x"));
    assert_eq!(cli.daemon.fast_path.window, Duration::from_secs(7));
    assert!(klog.written.is_empty() && klog.without_effect.is_empty());
    assert_eq!(klog.filter().unwrap(), "info,flannel_agent=debug,flannel_core=debug");
    let (cli, _) = run(&["-ip-masq=false", "-iface", "eth2", "-etcd-endpoints="], &env).unwrap();
    assert!(!cli.daemon.rules.masquerade);
    assert_eq!(cli.daemon.underlay.iface, ["eth2"]);
    assert_eq!(cli.daemon.etcd.endpoints.len(), 2, "set to nothing: the default");
    assert_eq!(cli.daemon.etcd.endpoints[0], "http://127.0.0.1:4001");
}

#[test]
fn every_flag_of_the_daemon_has_a_variable() {
    let values = [
        ("ip-masq", "true"),
        ("ip-masq-fully-random-disable", "true"),
        ("ip-blackhole-route", "true"),
        ("iptables-forward-rules", "false"),
        ("iptables-resync", "9"),
        ("healthz-port", "9"),
        ("kube-subnet-mgr", "false"),
        ("set-node-network-unavailable", "true"),
        ("iface-can-reach", "192.0.2.1"),
        ("public-ip", "192.0.2.1"),
        ("public-ipv6", "2001:db8::1"),
        ("datapath", "ebpf"),
        ("tunnel-checksum", "kernel"),
        ("on-lost-lease", "exit"),
        ("firewall", "none"),
        ("fast-path", "off"),
        ("packet-rules", "ignore"),
        ("fast-path-window", "1"),
        ("flow-table-size", "4096"),
        ("verify-source", "off"),
        ("attach", "tcx"),
        ("grace-periods", "normal"),
        ("xdp", "off"),
        ("resync-interval", "9"),
        ("metrics-peers", "true"),
        ("connectivity-port", "9"),
        ("log-format", "json"),
        ("etcd-api", "v2"),
        ("subnet-lease-renew-margin", "9"),
    ];
    for arg in Cli::command().get_arguments().filter(|arg| arg.get_id() != "version") {
        let name = arg.get_long().unwrap();
        let value = values.iter().find(|(known, _)| *known == name).map_or("/other", |pair| pair.1);
        let plain = format!("{:?}", daemon(&[]));
        let variable = go_style::variable(name);
        let (cli, _) = run(&[], &[(&variable, value)]).unwrap();
        assert_ne!(format!("{:?}", cli.daemon), plain, "{variable} has no effect");
    }
}

#[test]
fn a_bad_variable_is_named() {
    let exit = run(&[], &[("FLANNELD_PUBLIC_IP", "here")]).map(|_| ()).unwrap_err();
    assert_eq!(exit.code, 2);
    assert!(exit.text.contains("FLANNELD_PUBLIC_IP"), "{}", exit.text);
    assert!(!refused(&["-public-ip=here"]).text.contains("FLANNELD_"));
}

#[test]
fn logging_flags_are_accepted_and_returned() {
    let (cli, klog) = run(
        &[
            "-v=4",
            "-v",
            "4",
            "--v=2",
            "-logtostderr",
            "-logtostderr=true",
            "-alsologtostderr",
            "-stderrthreshold=INFO",
            "-vmodule",
            "a=1,b=2",
            "-log_backtrace_at=a.go:1",
            "-log_dir=/var/log",
            "--ip-masq",
        ],
        &[],
    )
    .unwrap();
    assert!(cli.daemon.rules.masquerade);
    assert_eq!(
        klog.written,
        [
            "-v=4",
            "-v 4",
            "--v=2",
            "-logtostderr",
            "-logtostderr=true",
            "-alsologtostderr",
            "-stderrthreshold=INFO",
            "-vmodule a=1,b=2",
            "-log_backtrace_at=a.go:1",
            "-log_dir=/var/log"
        ]
    );
    let (cli, klog) = run(&["-v", "-ip-masq"], &[]).unwrap();
    assert!(cli.daemon.rules.masquerade && klog.written == ["-v"]);
}

#[test]
fn help_and_version() {
    for args in [["-h"], ["-help"], ["--help"]] {
        let exit = refused(&args);
        assert_eq!((exit.code, exit.stream), (0, Stream::Out), "{args:?}");
        for part in ["--etcd-endpoints", "--fast-path-window", "FLANNELD_", "status"] {
            assert!(exit.text.contains(part), "{part}: {}", exit.text);
        }
    }
    for args in [["-version"], ["--version"], ["-version=true"]] {
        let exit = refused(&args);
        assert_eq!((exit.code, exit.stream), (0, Stream::Err), "{args:?}");
        assert_eq!(exit.text, format!("v{}\n", env!("CARGO_PKG_VERSION")));
    }
    assert!(run(&["-version=false"], &[]).is_ok());
}

#[test]
fn mistakes_end_with_2_and_a_hint() {
    for (args, hint) in [
        (&["-etcd-endpoint=x"][..], "--etcd-endpoints"),
        (&["--ip-mask"], "--ip-masq"),
        (&["-datapath=xdp"], "kernel"),
        (&["-fast-path=always"], "confirmed"),
        (&["-verify-source=on"], "count"),
        (&["-attach=xdp"], "clsact"),
        (&["-attach-iface=("], "unclosed group"),
        (&["-public-ip=fd00::1"], "--public-ip"),
        (&["-iface"], "--iface"),
        (&["-resync-interval=0"], "86400"),
        (&["-subnet-lease-renew-margin=soon"], "--subnet-lease-renew-margin"),
        (&["statsu"], "status"),
        (&["-x"], "-x"),
        (&["status", "-ip-masq"], "--ip-masq"),
        (&["-ip-masq", "status"], "status"),
    ] {
        let exit = refused(args);
        assert_eq!((exit.code, exit.stream), (2, Stream::Err), "{args:?}");
        assert!(exit.text.contains(hint), "{args:?}: {}", exit.text);
    }
}

#[test]
fn the_window_has_bounds() {
    for (text, window) in [
        ("100ms", Duration::from_millis(100)),
        ("1", Duration::from_secs(1)),
        ("20", Duration::from_secs(20)),
        ("20s", Duration::from_secs(20)),
        ("20000ms", Duration::from_secs(20)),
    ] {
        assert_eq!(daemon(&["-fast-path-window", text]).fast_path.window, window);
    }
    for text in ["0", "99ms", "21", "20001ms", "30s", "1000000000000"] {
        let exit = refused(&["-fast-path-window", text]);
        assert_eq!(exit.code, 2, "{text}");
        assert!(
            exit.text.contains("must stay below conntrack's UDP timeout of 30 s"),
            "{text}: {}",
            exit.text
        );
    }
    for text in ["-5", "1.5", "5m", "s", "ms", "99999999999999999999"] {
        assert_eq!(refused(&["-fast-path-window", text]).code, 2, "{text}");
    }
}

#[test]
fn the_renew_margin_has_flannels_bounds() {
    for minutes in ["1", "1439"] {
        daemon(&["-subnet-lease-renew-margin", minutes]);
    }
    for minutes in ["0", "1440", "-1"] {
        for args in [
            vec![format!("-subnet-lease-renew-margin={minutes}")],
            vec!["-subnet-lease-renew-margin".to_owned(), minutes.to_owned()],
        ] {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            let exit = refused(&args);
            assert_eq!((exit.code, exit.stream), (1, Stream::Err));
            assert!(
                exit.text.starts_with(
                    "Invalid subnet-lease-renew-margin option, out of acceptable range"
                )
            );
        }
    }
}

#[test]
fn subcommands() {
    let (cli, _) = run(&["status"], &[]).unwrap();
    assert!(matches!(&cli.command, Some(Command::Status(ReaderArgs { json: false, state }))
        if state.dir == Path::new("/var/lib/flannel-ebpf")));
    let (cli, _) = run(&["peers", "-json", "-state-dir", "/s"], &[]).unwrap();
    assert!(matches!(&cli.command, Some(Command::Peers(ReaderArgs { json: true, state }))
        if state.dir == Path::new("/s")));
    let (cli, _) = run(
        &["cleanup", "--pin-dir=/p", "--force"],
        &[("FLANNELD_STATE_DIR", "/env"), ("FLANNELD_PIN_DIR", "/no"), ("FLANNELD_IFACE", "x")],
    )
    .unwrap();
    let Some(Command::Cleanup(args)) = cli.command else { panic!("not cleanup") };
    assert_eq!(args.state.dir, Path::new("/env"));
    assert_eq!(args.pins.dir, Path::new("/p"));
    assert_eq!(args.subnet_file.path, Path::new("/run/flannel/subnet.env"));
    assert!(args.force && !args.keep_device);
    let (cli, klog) = run(&["-v=4", "status"], &[("FLANNELD_STATE_DIR", "/env")]).unwrap();
    assert!(matches!(cli.command, Some(Command::Status(_))) && klog.written == ["-v=4"]);
}

#[test]
fn bytes_that_are_no_text_are_passed_on() {
    use std::os::unix::ffi::OsStringExt;
    let path = OsString::from_vec(b"/s\xff".to_vec());
    let argv = ["flanneld".into(), "-state-dir".into(), path.clone()];
    let (cli, _) = parse(argv, |_| None).unwrap();
    assert_eq!(cli.daemon.state_dir, Path::new(&path));
    let argv = ["flanneld".into(), OsString::from_vec(b"-\xff".to_vec())];
    assert_eq!(parse(argv, |_| None).map(|_| ()).unwrap_err().code, 2);
}
