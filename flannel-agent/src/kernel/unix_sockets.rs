//! Names of unix sockets in this network namespace, and whose they are (sock_diag).

use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use super::KernelError;
use super::raw;
use super::socket::{RouteSocket, explain};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// UDIAG_SHOW_NAME and, since Linux 5.3, UDIAG_SHOW_UID.
const SHOW: u32 = 1 | 1 << 6;
/// UNIX_DIAG_NAME and UNIX_DIAG_UID.
const NAME: u16 = 0;
const UID: u16 = 7;
/// Length of `struct unix_diag_msg`, and where the inode stands in it.
const HEADER: usize = 16;
const INODE: usize = 4;

/// A socket with an abstract name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Without the zero at its beginning.
    pub name: Vec<u8>,
    /// As fstat(2) tells it.
    pub inode: u32,
    /// Who made it; `None` where the kernel does not tell.
    pub uid: Option<u32>,
}

/// All of them.
///
/// # Errors
/// The kernel does not tell: it was built without `CONFIG_UNIX_DIAG`, say.
pub fn abstract_names() -> Result<Vec<Named>, KernelError> {
    let failed = |refused| explain("list", "unix sockets".to_owned(), refused);
    let mut socket =
        RouteSocket::open_for(NETLINK_SOCK_DIAG).map_err(|error| failed(error.into()))?;
    let answers = socket.dump_raw(SOCK_DIAG_BY_FAMILY, &question()).map_err(failed)?;
    Ok(answers.iter().filter_map(|answer| read(&answer.body)).collect())
}

/// `struct unix_diag_req`: sockets in any state.
fn question() -> Vec<u8> {
    let (inode, cookie) = (0_u32, [0; 8]);
    let mut body = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for number in [u32::MAX, inode, SHOW] {
        body.extend(number.to_ne_bytes());
    }
    body.extend(cookie);
    body
}

fn read(body: &[u8]) -> Option<Named> {
    let attributes = body.get(HEADER..)?;
    let name = raw::attribute(attributes, NAME)?.strip_prefix(&[0])?.to_vec();
    let uid = raw::attribute(attributes, UID).and_then(|value| raw::number(value, 0));
    Some(Named { name, inode: raw::number(body, INODE)?, uid })
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    #[test]
    fn a_name_is_told_with_inode_and_owner() {
        let name = b"flannel-ebpf: a name of a test".to_vec();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let inode = rustix::fs::fstat(&socket).unwrap().st_ino as u32;
        let uid = Some(nix::unistd::geteuid().as_raw());
        let expected = Named { name, inode, uid };
        assert!(abstract_names().unwrap().contains(&expected));
        drop(socket);
        assert!(!abstract_names().unwrap().contains(&expected));
    }
}
