//! Values under /proc/sys.

mod open;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use open::Open;

use super::KernelError;

/// `net.netfilter.nf_conntrack_tcp_be_liberal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpConntrack {
    /// nf_conntrack is not loaded (in this network namespace): nothing tracks TCP.
    Absent,
    /// Packets out of window are INVALID.
    Strict,
    /// Only RSTs out of window are INVALID.
    Liberal,
}

/// Conntrack's timeouts, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timeout {
    /// Of a TCP connection after its handshake.
    TcpEstablished,
    /// Of one that the side which began has ended.
    TcpFinWait,
    /// Of one that the other side has ended.
    TcpCloseWait,
    /// Of one of which data was seen and not its ACK.
    TcpUnacknowledged,
    /// Of one of which data was seen again and again.
    TcpMaxRetrans,
    /// Of a UDP flow.
    Udp,
    /// Of a UDP flow that was answered several times.
    UdpStream,
}

impl Timeout {
    /// Its name, as `sysctl` prints it.
    pub fn name(self) -> String {
        self.key().replace('/', ".")
    }

    const fn key(self) -> &'static str {
        match self {
            Self::TcpEstablished => "net/netfilter/nf_conntrack_tcp_timeout_established",
            Self::TcpFinWait => "net/netfilter/nf_conntrack_tcp_timeout_fin_wait",
            Self::TcpCloseWait => "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            Self::TcpUnacknowledged => "net/netfilter/nf_conntrack_tcp_timeout_unacknowledged",
            Self::TcpMaxRetrans => "net/netfilter/nf_conntrack_tcp_timeout_max_retrans",
            Self::Udp => "net/netfilter/nf_conntrack_udp_timeout",
            Self::UdpStream => "net/netfilter/nf_conntrack_udp_timeout_stream",
        }
    }
}

/// Access to /proc/sys, or to another directory in tests.
///
/// Values under `net/` are those of the calling thread's network namespace.
#[derive(Clone, Debug)]
pub struct Sysctl {
    root: PathBuf,
    /// Those of the kernel stay open: most are read again and again.
    open: Option<Open>,
}

impl Default for Sysctl {
    /// The kernel's own values. Those under `net/` stay those of the network namespace
    /// in which they were read first.
    fn default() -> Self {
        Self { root: "/proc/sys".into(), open: Some(Open::default()) }
    }
}

const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
const HELPER: &str = "net/netfilter/nf_conntrack_helper";
const LOOSE: &str = "net/netfilter/nf_conntrack_tcp_loose";
const DEFAULT_TTL: &str = "net/ipv4/ip_default_ttl";
const PORT_RANGE: &str = "net/ipv4/ip_local_port_range";

impl Sysctl {
    /// Reads and writes below this directory.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), open: None }
    }

    /// A value without its newline. Keys have slashes (`net/ipv4/ip_forward`),
    /// since interface names may have dots.
    ///
    /// # Errors
    /// When the file cannot be read; `NotFound` if the kernel has no such value.
    pub fn read(&self, key: &str) -> Result<String, KernelError> {
        if let Some(text) = self.open.as_ref().and_then(|open| open.read(key)) {
            return Ok(text);
        }
        let path = self.root.join(key);
        let failed = |source| KernelError::new("read", path.display().to_string(), source);
        let mut file = File::open(&path).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        if let Some(open) = &self.open {
            open.keep(key, file);
        }
        Ok(text.trim_end().to_owned())
    }

    /// Writes a value, unless it is there already.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn write(&self, key: &str, value: &str) -> Result<(), KernelError> {
        if self.read(key)? == value {
            return Ok(());
        }
        let path = self.root.join(key);
        std::fs::write(&path, value).map_err(|source| {
            let denied = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem]
                .contains(&source.kind());
            let mut error = KernelError::new("write", path.display().to_string(), source);
            error.hint = denied.then(|| {
                "/proc/sys is read-only or not root's here (container, ProtectKernelTunables=)"
                    .into()
            });
            error
        })
    }

    fn number(&self, key: &str) -> Result<u32, KernelError> {
        let text = self.read(key)?;
        text.parse().map_err(|_| self.malformed(key, &text, "a number"))
    }

    fn malformed(&self, key: &str, text: &str, expected: &str) -> KernelError {
        let source =
            io::Error::new(io::ErrorKind::InvalidData, format!("`{text}` is not {expected}"));
        KernelError::new("read", self.root.join(key).display().to_string(), source)
    }

    /// `net.ipv4.ip_local_port_range`, lowest and highest: what the kernel's
    /// VXLAN takes source ports from.
    ///
    /// # Errors
    /// When it cannot be read or is not two ports in order.
    pub fn local_port_range(&self) -> Result<(u16, u16), KernelError> {
        let text = self.read(PORT_RANGE)?;
        let mut ports = text.split_whitespace().map(str::parse);
        match (ports.next(), ports.next(), ports.next()) {
            (Some(Ok(low)), Some(Ok(high)), None) if low <= high => Ok((low, high)),
            _ => Err(self.malformed(PORT_RANGE, &text, "two ports in order")),
        }
    }

    /// `net.ipv4.ip_default_ttl`: that of packets of the node's own.
    ///
    /// # Errors
    /// When it cannot be read or is none.
    pub fn default_ttl(&self) -> Result<u8, KernelError> {
        let text = self.read(DEFAULT_TTL)?;
        let ttl = text.parse().ok().filter(|ttl| *ttl != 0);
        ttl.ok_or_else(|| self.malformed(DEFAULT_TTL, &text, "a TTL"))
    }

    /// How conntrack treats TCP packets out of window.
    ///
    /// # Errors
    /// When the value is there but cannot be read.
    pub fn tcp_conntrack(&self) -> Result<TcpConntrack, KernelError> {
        match self.number(LIBERAL) {
            Ok(0) => Ok(TcpConntrack::Strict),
            Ok(_) => Ok(TcpConntrack::Liberal),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
                Ok(TcpConntrack::Absent)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether conntrack picks up connections that it did not see begin; so it
    /// is where there is none.
    ///
    /// # Errors
    /// When the value is there but cannot be read.
    pub fn tcp_conntrack_loose(&self) -> Result<bool, KernelError> {
        match self.number(LOOSE) {
            Ok(value) => Ok(value != 0),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Makes conntrack accept TCP packets out of window.
    ///
    /// # Errors
    /// When it cannot be written; `NotFound` if conntrack is absent.
    pub fn set_tcp_conntrack_liberal(&self, liberal: bool) -> Result<(), KernelError> {
        self.write(LIBERAL, if liberal { "1" } else { "0" })
    }

    /// One of conntrack's timeouts in seconds; `None` where there is no conntrack.
    ///
    /// # Errors
    /// When the value is there but cannot be read.
    pub fn timeout(&self, timeout: Timeout) -> Result<Option<u32>, KernelError> {
        match self.number(timeout.key()) {
            Ok(seconds) => Ok(Some(seconds)),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets one of conntrack's timeouts.
    ///
    /// # Errors
    /// When it cannot be written; `NotFound` if conntrack is absent.
    pub fn set_timeout(&self, timeout: Timeout, seconds: u32) -> Result<(), KernelError> {
        self.write(timeout.key(), &seconds.to_string())
    }

    /// Whether conntrack gives helpers to connections by their ports, without a
    /// rule that asks for it; kernels from 6.0 on have no such setting. To be asked after
    /// another one of conntrack's, which tells whether it was loaded since.
    ///
    /// # Errors
    /// When the value is there but cannot be read.
    pub fn automatic_helpers(&self) -> Result<bool, KernelError> {
        if self.open.as_ref().is_some_and(|open| open.is_absent(HELPER)) {
            return Ok(false);
        }
        match self.number(HELPER) {
            Ok(value) => Ok(value != 0),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
                self.open.iter().for_each(|open| open.note_absent(HELPER));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Reverse path filter in force on a device: the larger of its own value
    /// and that of `all` (0 off, 1 strict, 2 loose).
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn rp_filter(&self, device: &str) -> Result<u32, KernelError> {
        let all = self.number("net/ipv4/conf/all/rp_filter")?;
        Ok(all.max(self.number(&format!("net/ipv4/conf/{device}/rp_filter"))?))
    }

    /// Lets the kernel forward what comes in by a device, where the node forwards at all:
    /// a new device may begin otherwise (`conf.default`).
    ///
    /// # Errors
    /// The setting cannot be read or written.
    pub fn forward_from(&self, device: &str) -> Result<(), KernelError> {
        match self.number("net/ipv4/ip_forward")? {
            0 => Ok(()),
            _ => self.write(&format!("net/ipv4/conf/{device}/forwarding"), "1"),
        }
    }

    /// `net.ipv6.conf.<device>.accept_ra`.
    ///
    /// # Errors
    /// When it cannot be written; `NotFound` if the kernel has no IPv6.
    pub fn set_accept_ra(&self, device: &str, value: u8) -> Result<(), KernelError> {
        self.write(&format!("net/ipv6/conf/{device}/accept_ra"), &value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysctl) {
        let dir = tempfile::tempdir().unwrap();
        for (key, value) in files {
            let path = dir.path().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        }
        let sysctl = Sysctl::at(dir.path());
        (dir, sysctl)
    }

    #[test]
    fn a_ttl_is_a_byte_that_is_not_zero() {
        let (_dir, sysctl) = tree(&[(DEFAULT_TTL, "255\n")]);
        assert_eq!(sysctl.default_ttl().unwrap(), 255);
        for bad in ["", "0", "256", "64 64"] {
            let (_dir, sysctl) = tree(&[(DEFAULT_TTL, bad)]);
            assert!(sysctl.default_ttl().unwrap_err().to_string().contains("ip_default_ttl"));
        }
    }

    #[test]
    fn port_range_is_two_ports_in_order() {
        let (_dir, sysctl) = tree(&[(PORT_RANGE, "32768\t60999\n")]);
        assert_eq!(sysctl.local_port_range().unwrap(), (32768, 60999));
        for bad in ["", "1", "1 2 3", "9 8", "1 70000", "a b"] {
            let (_dir, sysctl) = tree(&[(PORT_RANGE, bad)]);
            let error = sysctl.local_port_range().unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidData, "{bad}");
            assert!(error.to_string().contains("ip_local_port_range"), "{error}");
        }
    }

    #[test]
    fn conntrack_that_is_not_loaded_is_no_error() {
        let (_dir, sysctl) = tree(&[]);
        assert_eq!(sysctl.tcp_conntrack().unwrap(), TcpConntrack::Absent);
        let (_dir, sysctl) = tree(&[(LIBERAL, "0\n")]);
        assert_eq!(sysctl.tcp_conntrack().unwrap(), TcpConntrack::Strict);
        sysctl.set_tcp_conntrack_liberal(true).unwrap();
        assert_eq!(sysctl.tcp_conntrack().unwrap(), TcpConntrack::Liberal);
    }

    #[test]
    fn writing_what_the_kernel_has_not_names_the_file() {
        let (dir, sysctl) = tree(&[]);
        let error = sysctl.set_accept_ra("flannel.1", 0).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
        let path = dir.path().join("net/ipv6/conf/flannel.1/accept_ra");
        assert_eq!(error.object, path.display().to_string());
        assert!(!path.exists());
    }

    #[test]
    fn a_value_that_is_there_is_not_written() {
        let (dir, sysctl) = tree(&[("net/ipv4/ip_forward", "1\n")]);
        sysctl.write("net/ipv4/ip_forward", "1").unwrap();
        let text = std::fs::read_to_string(dir.path().join("net/ipv4/ip_forward")).unwrap();
        assert_eq!(text, "1\n");
        sysctl.write("net/ipv4/ip_forward", "0").unwrap();
        assert_eq!(sysctl.read("net/ipv4/ip_forward").unwrap(), "0");
    }

    #[test]
    fn rp_filter_is_the_larger_of_two() {
        let (_dir, sysctl) = tree(&[
            ("net/ipv4/conf/all/rp_filter", "2"),
            ("net/ipv4/conf/flannel.1/rp_filter", "1"),
        ]);
        assert_eq!(sysctl.rp_filter("flannel.1").unwrap(), 2);
    }
}
