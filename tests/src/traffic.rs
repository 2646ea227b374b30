//! The harness's own load: small, the same for every path that is compared.
//!
//! One TCP connection or UDP datagram begins with the byte that says what it
//! wants; [`server`] answers, [`client`] and
//! [`transactions`] measure.

pub mod bulk;
pub mod client;
pub mod counters;
pub mod cpu;
pub mod random;
pub mod scatter;
pub mod server;
pub mod transactions;

/// First byte of a TCP connection.
pub mod want {
    /// One byte back for each byte.
    pub const ECHO: u8 = b'e';
    /// One byte back, then the end.
    pub const ONCE: u8 = b'o';
    /// Take everything, then say how much it was (u64, network order).
    pub const SINK: u8 = b's';
    /// Random data to be checked, then random data back ([`super::bulk`]).
    pub const BULK: u8 = b'b';
    /// Messages (u32 length, data) sent back with every bit turned.
    pub const TURN: u8 = b't';
}

/// First byte of a UDP datagram.
pub mod datagram {
    /// Send it back.
    pub const ECHO: u8 = b'E';
    /// Count it by its stream id (4 bytes).
    pub const COUNT: u8 = b'C';
    /// Send back the count (u64) of a stream id.
    pub const QUERY: u8 = b'Q';
}

/// Gives a socket room for what comes while a busy machine does not let its reader run:
/// what is lost there says nothing of the network.
///
/// # Errors
/// The process may not.
pub fn widen(socket: &std::net::UdpSocket) -> nix::Result<()> {
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20))
}

/// Cubic, the kernel's default, where this system prefers another: BBR would
/// pace by its own estimate of the path, and a measurement would measure that
/// estimate. A namespace of its own may not choose for all of its connections.
fn default_congestion_control(stream: &std::net::TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
    if let Err(error) = setsockopt(stream, TcpCongestion, &std::ffi::OsString::from("cubic")) {
        eprintln!("congestion control cubic: {error}");
    }
}
