//! `mk-docker-opts.sh`: what dockerd is told, byte for byte, from every shell
//! that a node may have as /bin/sh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use flannel_tests::lab::Lab;
use flannel_tests::process::output;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/mk-docker-opts.sh");
const SHELLS: [&[&str]; 3] = [&["dash"], &["busybox", "sh"], &["bash", "--posix"]];

const ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n\
                   FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
const BIP: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n";
const MASQ: &str = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n";
const MTU: &str = "DOCKER_OPT_MTU=\"--mtu=1472\"\n";
const ALL: &str = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";

/// The script in one of the shells, with the environment emptied.
fn script(shell: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg(SCRIPT).args(arguments).env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn said(output: &Output) -> String {
    text(&output.stderr)
}

/// What the script writes for this subnet.env (`None`: there is none), these
/// arguments and variables.
fn written(
    shell: &[&str],
    env: Option<&str>,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (from, to) = (dir.path().join("subnet.env"), dir.path().join("docker"));
    if let Some(env) = env {
        fs::write(&from, env).expect("write subnet.env");
    }
    fs::write(&to, "what was there before\n").expect("write the target");
    let mut command = script(shell, &["-f", path(&from), "-d", path(&to)]);
    let output = output(command.args(arguments).envs(variables.iter().copied()));
    assert!(output.status.success(), "{shell:?} {arguments:?}: {}", said(&output));
    assert_eq!(said(&output), "", "{shell:?} {arguments:?}");
    assert_eq!(text(&output.stdout), "", "{shell:?} {arguments:?}");
    fs::read_to_string(&to).expect("what was written")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path")
}

#[test]
fn every_option_byte_for_byte() {
    let single = [BIP, MASQ, MTU].concat();
    let both = [&single, ALL].concat();
    let named = both.replace("DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS");
    let unmasked = both.replace(MASQ, "").replace(" --ip-masq=true", "");
    let cases: [(&[&str], &str); 9] = [
        (&[], &both),
        (&["-i"], &single),
        (&["-c"], ALL),
        (&["-i", "-c"], &both),
        (&["-ic"], &both),
        (&["-k", "DOCKER_NETWORK_OPTIONS"], &named),
        (&["-m"], &unmasked),
        (&["-c", "-k", "OPTS"], "OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"),
        (&["-mck", "OPTS"], "OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"),
    ];
    for shell in SHELLS {
        for (arguments, expected) in cases {
            let found = written(shell, Some(ENV), arguments, &[]);
            assert_eq!(found, expected, "{shell:?} {arguments:?}");
        }
    }
}

#[test]
fn every_subnet_env_byte_for_byte() {
    let masquerading = ENV.replace("false", "true");
    let cases: [(Option<&str>, &str); 5] = [
        (None, "DOCKER_OPTS=\"\"\n"),
        (Some(""), "DOCKER_OPTS=\"\"\n"),
        (Some(&masquerading), "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n"),
        (Some("FLANNEL_MTU=1450\n"), "DOCKER_OPTS=\" --mtu=1450\"\n"),
        (
            Some("FLANNEL_SUBNET=172.30.8.1/21\nFLANNEL_MTU=1450\n"),
            "DOCKER_OPTS=\" --bip=172.30.8.1/21 --mtu=1450\"\n",
        ),
    ];
    for shell in SHELLS {
        for (env, expected) in cases {
            assert_eq!(written(shell, env, &["-c"], &[]), expected, "{shell:?} {env:?}");
        }
    }
}

#[test]
fn what_the_environment_brings_goes_first() {
    for shell in SHELLS {
        let set = [("DOCKER_OPTS", "--debug -H fd://")];
        assert_eq!(
            written(shell, Some(ENV), &["-c"], &set),
            "DOCKER_OPTS=\"--debug -H fd://  --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
        );
        // Under another key it is another variable.
        assert!(!written(shell, Some(ENV), &["-c", "-k", "KEY"], &set).contains("debug"));
        let more = [("DOCKER_OPT_ICC", "--icc=false"), ("DOCKER_OPT_MTU", "--mtu=9")];
        assert_eq!(
            written(shell, Some(ENV), &[], &more),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_ICC=\"--icc=false\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\" --bip=10.1.74.1/24 --icc=false --ip-masq=true --mtu=1472\"\n"
        );
        // A value with blanks stays one value.
        let blanks = [("DOCKER_OPT_X", "--label a=b")];
        assert_eq!(
            written(shell, None, &[], &blanks),
            "DOCKER_OPT_X=\"--label a=b\"\nDOCKER_OPTS=\" --label a=b\"\n"
        );
    }
}

#[test]
fn wrong_use_explains_itself() {
    for shell in SHELLS {
        for arguments in [["-h"].as_slice(), &["-?"], &["-x"], &["-f"]] {
            let output = output(&mut script(shell, arguments));
            assert_eq!(output.status.code(), Some(1), "{shell:?} {arguments:?}");
            assert_eq!(text(&output.stdout), "", "{shell:?} {arguments:?}");
            let usage = "mk-docker-opts.sh [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] \
                         [-m] [-k COMBINED-KEY]\n";
            assert!(said(&output).contains(usage), "{shell:?} {arguments:?}: {}", said(&output));
        }
        for key in ["", "A-B", "1A", "A;id"] {
            let output = output(&mut script(shell, &["-f", "/none", "-d", "/none/x", "-k", key]));
            assert_eq!(output.status.code(), Some(1), "{shell:?} {key}");
            assert!(said(&output).contains("not the name of a variable"), "{}", said(&output));
        }
    }
}

#[test]
fn a_strange_ip_masq_writes_nothing() {
    for shell in SHELLS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (from, to) = (dir.path().join("subnet.env"), dir.path().join("docker"));
        fs::write(&from, ENV.replace("false", "yes")).expect("write subnet.env");
        let arguments = ["-f", path(&from), "-d", path(&to)];
        let refused = output(&mut script(shell, &arguments));
        assert_eq!(refused.status.code(), Some(1), "{shell:?}");
        assert_eq!(said(&refused), "Invalid value of FLANNEL_IPMASQ: yes\n", "{shell:?}");
        assert!(!to.exists(), "{shell:?}");
        // Who does not ask for it does not get it.
        assert!(output(script(shell, &arguments).arg("-m")).status.success(), "{shell:?}");
    }
}

#[test]
fn a_file_that_cannot_be_written_fails() {
    for shell in SHELLS {
        let output = output(&mut script(shell, &["-f", "/none", "-d", "/none/docker"]));
        assert_eq!(output.status.code(), Some(1), "{shell:?}");
        assert!(said(&output).contains("/none/docker"), "{shell:?}: {}", said(&output));
    }
}

/// A file system of four pages, in a mount namespace. Says the exit code and what is there.
const FULL: &str = r#"dir=$1 script=$2
shift 2
mount -t tmpfs -o size=16k tmpfs "$dir"
said() { "$@" "$script" -f "$dir/../subnet.env" -d "$dir/docker" -c 2>/dev/null; echo "$?"; }
echo before > "$dir/docker"
chmod 640 "$dir/docker"
dd if=/dev/zero of="$dir/fill" bs=4k 2>/dev/null
said "$@"
cat "$dir/docker"
ls -A "$dir"
rm "$dir/docker"
dd if=/dev/zero of="$dir/fill" bs=4k 2>/dev/null
said "$@"
ls -A "$dir"
rm "$dir/fill"
echo before > "$dir/docker"
chmod 640 "$dir/docker"
said "$@"
cat "$dir/docker"
stat -c %a "$dir/docker"
ls -A "$dir"
"#;

#[test]
fn a_full_disk_leaves_what_was_there() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("subnet.env"), ENV).expect("write subnet.env");
    let full = dir.path().join("full");
    fs::create_dir(&full).expect("a directory");
    for shell in SHELLS {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", FULL, "full", path(&full), SCRIPT]).args(shell);
        let output = output(&mut command);
        let expected = format!("1\nbefore\ndocker\nfill\n1\nfill\n0\n{ALL}640\ndocker\n");
        assert_eq!(text(&output.stdout), expected, "{shell:?}: {}", said(&output));
    }
}

#[test]
fn what_is_no_plain_file_is_written_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (from, to) = (dir.path().join("subnet.env"), dir.path().join("docker"));
    let link = dir.path().join("link");
    fs::write(&from, ENV).expect("write subnet.env");
    fs::write(&to, "before").expect("write the target");
    std::os::unix::fs::symlink(&to, &link).expect("a link");
    for shell in SHELLS {
        let run = |to: &str| output(&mut script(shell, &["-c", "-f", path(&from), "-d", to]));
        assert_eq!(text(&run("/dev/stdout").stdout), ALL, "{shell:?}");
        assert!(run(path(&link)).status.success(), "{shell:?}");
        assert!(link.is_symlink(), "{shell:?}");
        assert_eq!(fs::read_to_string(&to).expect("what was written"), ALL, "{shell:?}");
    }
}

#[test]
fn a_route_by_another_machine_is_a_conflict() {
    let lab = Lab::new();
    let node = lab.node(1);
    let file = lab.dir().join("subnet.env");
    fs::write(&file, ENV).expect("write subnet.env");
    let target = lab.dir().join("docker");
    let run = |shell: &[&str]| {
        let mut command = node.netns.command(shell[0]);
        command.args(&shell[1..]).args([SCRIPT, "-c", "-f", path(&file), "-d", path(&target)]);
        output(&mut command)
    };
    // None of these is the subnet by way of another machine.
    for route in ["110.1.74.0/24 via 192.0.2.1", "10.1.74.0/25 via 192.0.2.1", "10.1.74.0/24"] {
        node.netns.ip(&format!("route add {route} dev eth0"));
    }
    for shell in SHELLS {
        let output = run(shell);
        assert!(output.status.success(), "{shell:?}: {}", said(&output));
    }
    node.netns.ip("route replace 10.1.74.0/24 via 192.0.2.1 dev eth0");
    for shell in SHELLS {
        fs::remove_file(&target).expect("remove the target");
        let output = run(shell);
        assert_eq!(output.status.code(), Some(1), "{shell:?}");
        let message = "Your routing table already contains the subnet: \
                       10.1.74.0/24 via 192.0.2.1 dev eth0";
        assert_eq!(said(&output).trim_end(), message, "{shell:?}");
        // Written before the look at the routes.
        assert_eq!(fs::read_to_string(&target).expect("the target"), ALL, "{shell:?}");
    }
}

#[test]
fn scripts_are_executable_and_plain_sh() {
    for name in ["mk-docker-opts.sh", "flanneld-start"] {
        let file = Path::new(SCRIPT).with_file_name(name);
        let mode = fs::metadata(&file).expect("the script").permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{name}");
        assert!(fs::read_to_string(&file).expect("the script").starts_with("#!/bin/sh\n"));
        for shell in SHELLS {
            let output = output(Command::new(shell[0]).args(&shell[1..]).arg("-n").arg(&file));
            assert!(output.status.success(), "{shell:?} {name}: {}", said(&output));
        }
    }
}
