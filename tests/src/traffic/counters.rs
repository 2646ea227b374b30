//! The kernel's TCP counters of this network namespace.

/// TCP segments that were sent again since the namespace was made
/// (`RetransSegs` of /proc/net/snmp, RFC 4022).
///
/// # Panics
/// /proc/net/snmp does not have it.
pub fn retransmits() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").expect("/proc/net/snmp");
    tcp(&text, "RetransSegs").unwrap_or_else(|| panic!("no RetransSegs in {text}"))
}

/// A counter of TCP in the text of /proc/net/snmp.
pub fn tcp(text: &str, name: &str) -> Option<u64> {
    field(text, "Tcp:", name)
}

/// A counter of TCP in the text of /proc/net/netstat.
pub fn tcp_ext(text: &str, name: &str) -> Option<u64> {
    field(text, "TcpExt:", name)
}

/// The file has two lines for each protocol: names, then numbers.
fn field(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let index = names.split_whitespace().position(|word| word == name)?;
    numbers.split_whitespace().nth(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "Ip: Forwarding RetransSegs\nIp: 1 2\n\
                    Tcp: MaxConn InSegs RetransSegs\nTcp: -1 7 42\n";
        assert_eq!(field(text, "Tcp:", "RetransSegs"), Some(42));
        assert_eq!(field(text, "Tcp:", "InSegs"), Some(7));
        assert_eq!(field(text, "Tcp:", "MaxConn"), None, "not a count");
        assert_eq!(field(text, "Tcp:", "OutSegs"), None);
        assert_eq!(field(text, "Udp:", "RetransSegs"), None);
    }

    #[test]
    fn this_kernel_has_it() {
        retransmits();
    }
}
