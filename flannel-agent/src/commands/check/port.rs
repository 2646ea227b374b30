//! Which processes have a UDP port.

use std::fs;
use std::io;
use std::path::Path;

use flannel_core::check::facts::{Known, Unknown};

/// Sockets of this network namespace.
const SOCKETS: [&str; 2] = ["/proc/self/net/udp", "/proc/self/net/udp6"];

/// Processes with a socket on this UDP port, as `name (pid 7)`.
pub(super) fn holders(port: u16) -> Known<Vec<String>> {
    let mut inodes = Vec::new();
    for path in SOCKETS {
        match fs::read_to_string(path) {
            Ok(text) => inodes.extend(inodes_in(&text, port)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Unknown::because(format!("{path}: {error}"))),
        }
    }
    if inodes.is_empty() {
        return Ok(Vec::new());
    }
    // The socket of a VXLAN device has a number, too, but no process.
    Ok(processes_with(&inodes))
}

/// Numbers of the sockets on this port.
fn inodes_in(text: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let fits = u16::from_str_radix(local, 16) == Ok(port);
        fields.get(9)?.parse().ok().filter(|inode| fits && *inode != 0)
    };
    text.lines().skip(1).filter_map(inode).collect()
}

fn processes_with(inodes: &[u64]) -> Vec<String> {
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has = |process: &Path| {
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .filter(|entry| has(&entry.path()))
        .map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            format!("{} (pid {})", name.trim(), entry.file_name().to_string_lossy())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_holder_is_named() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = holders(port).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(&format!("(pid {})", std::process::id())), "{found:?}");
        drop(socket);
        assert_eq!(holders(port), Ok(Vec::new()));
        let table = "head\n 1: 00000000:2118 00000000:0000 07 0:0 0:0 0 0 0 77 2 0 0\n";
        assert_eq!((inodes_in(table, 8472), inodes_in(table, 8473)), (vec![77], vec![]));
    }
}
