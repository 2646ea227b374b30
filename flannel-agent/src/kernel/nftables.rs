//! What the kernel says of nftables without a program: the number of its rule set,
//! its tables and base chains. The rules themselves are for `nft`.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::KernelError;
use super::socket::split;

const TIMEOUT: Duration = Duration::from_secs(5);
const BUFFER: usize = 64 * 1024;
const ATTEMPTS: u32 = 5;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER_LEN: usize = 16;
const FAMILY_LEN: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NFNL_SUBSYS_NFTABLES, in the upper byte of a message's type.
const NFTABLES: u16 = 10 << 8;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWGEN: u16 = 15;
const GETGEN: u16 = 16;

const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
/// NFT_TABLE_F_DORMANT.
const DORMANT: u32 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
const NFTA_DEVICE_NAME: u16 = 1;
const NFTA_DEVICE_PREFIX: u16 = 2;
/// NF_NETDEV_EGRESS.
const NETDEV_EGRESS: u32 = 1;
/// The upper bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;

/// A table of nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family, as nft calls it.
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// Its chains are on no hook: no packet meets its rules.
    pub dormant: bool,
}

/// A base chain of nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Its family, as nft calls it.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its type (`filter`, `nat`, `route`).
    pub kind: String,
    /// Its devices, if its hook is a device's; a `*` at the end stands for anything.
    pub devices: Vec<String>,
    /// It sees what its devices send.
    pub egress: bool,
}

/// The number of the rule set in the calling thread's network namespace: every
/// transaction makes it another. `None`: this kernel has no nftables.
///
/// # Errors
/// The kernel does not answer.
pub fn generation() -> Result<Option<u32>, KernelError> {
    let failed = |source| KernelError::new("NFT_MSG_GETGEN", "rule set", source);
    let mut number = None;
    let answered = ask(GETGEN, 0, NEWGEN, |_, body| {
        let id = attributes(body).find(|(kind, _)| *kind == NFTA_GEN_ID);
        number = id.and_then(|(_, value)| Some(u32::from_be_bytes(value.try_into().ok()?)));
    });
    known(answered).map(|there| number.filter(|_| there)).map_err(failed)
}

/// The base chains in the calling thread's network namespace, without those of dormant
/// tables.
///
/// # Errors
/// The kernel does not answer.
pub fn base_chains() -> Result<Vec<BaseChain>, KernelError> {
    let failed = |source| KernelError::new("NFT_MSG_GETCHAIN", "base chains", source);
    let mut chains = dump(GETCHAIN, NEWCHAIN, base_chain).map_err(failed)?;
    if !chains.is_empty() {
        let tables = tables()?;
        let sleeps = |chain: &BaseChain| {
            let its = |table: &&Table| table.family == chain.family && table.name == chain.table;
            tables.iter().find(its).is_some_and(|table| table.dormant)
        };
        chains.retain(|chain| !sleeps(chain));
    }
    Ok(chains)
}

/// The tables in the calling thread's network namespace.
///
/// # Errors
/// The kernel does not answer.
pub fn tables() -> Result<Vec<Table>, KernelError> {
    let failed = |source| KernelError::new("NFT_MSG_GETTABLE", "tables", source);
    dump(GETTABLE, NEWTABLE, table).map_err(failed)
}

/// What `pick` takes of a dump; nothing where the kernel has no nftables.
fn dump<T>(kind: u16, wanted: u16, pick: impl Fn(u8, &[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    let mut attempt = 1;
    loop {
        let mut found = Vec::new();
        let answered =
            ask(kind, NLM_F_DUMP, wanted, |family, body| found.extend(pick(family, body)));
        match answered {
            // Somebody changed something meanwhile.
            Err(error) if error.kind() == io::ErrorKind::Interrupted && attempt < ATTEMPTS => {
                attempt += 1;
            }
            answered => return known(answered).map(|_| found),
        }
    }
}

/// Whether the kernel has nftables.
fn known(answered: io::Result<()>) -> io::Result<bool> {
    match answered {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => Ok(false),
            _ => Err(error),
        },
    }
}

fn family(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => return None,
    })
}

fn table(family: u8, body: &[u8]) -> Option<Table> {
    let (mut name, mut flags) = (None, 0);
    for (attribute, value) in attributes(body) {
        match attribute {
            NFTA_TABLE_NAME => name = Some(text(value)),
            NFTA_TABLE_FLAGS => flags = u32::from_be_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    Some(Table { family: self::family(family)?, name: name?, dormant: flags & DORMANT != 0 })
}

fn base_chain(family: u8, body: &[u8]) -> Option<BaseChain> {
    let family = self::family(family)?;
    let (mut table, mut name, mut kind, mut hook, mut number) = (None, None, None, None, None);
    for (attribute, value) in attributes(body) {
        match attribute {
            NFTA_CHAIN_TABLE => table = Some(text(value)),
            NFTA_CHAIN_NAME => name = Some(text(value)),
            NFTA_CHAIN_TYPE => kind = Some(text(value)),
            NFTA_CHAIN_HOOK => {
                hook = Some(devices(value));
                number = attributes(value).find(|(kind, _)| *kind == NFTA_HOOK_HOOKNUM);
            }
            _ => {}
        }
    }
    let number = number.and_then(|(_, value)| Some(u32::from_be_bytes(value.try_into().ok()?)));
    Some(BaseChain {
        egress: family == "netdev" && number == Some(NETDEV_EGRESS),
        family,
        table: table?,
        name: name?,
        devices: hook?,
        kind: kind.unwrap_or_default(),
    })
}

fn devices(hook: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for (attribute, value) in attributes(hook) {
        match attribute {
            NFTA_HOOK_DEV => names.push(text(value)),
            NFTA_HOOK_DEVS => {
                names.extend(attributes(value).filter_map(|(kind, name)| match kind {
                    NFTA_DEVICE_NAME => Some(text(name)),
                    NFTA_DEVICE_PREFIX => Some(format!("{}*", text(name))),
                    _ => None,
                }))
            }
            _ => {}
        }
    }
    names.sort();
    names.dedup();
    names
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// Types and values of the attributes, as far as they are whole.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEADER: usize = 4;
    std::iter::from_fn(move || {
        let header: [u8; HEADER] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Asks, and gives the attributes of every message of the type `wanted` to `take`,
/// with its family.
fn ask(kind: u16, flags: u16, wanted: u16, mut take: impl FnMut(u8, &[u8])) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(TIMEOUT.as_secs() as i64, 0))?;
    let mut request = Vec::with_capacity(HEADER_LEN + FAMILY_LEN);
    request.extend(((HEADER_LEN + FAMILY_LEN) as u32).to_ne_bytes());
    request.extend((NFTABLES | kind).to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port; any family.
    request.extend([0; 8]);
    request.extend([0; FAMILY_LEN]);
    socket.send(&request, 0)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        for message in split(&buffer) {
            match end(message) {
                Some(end) => return end,
                None => each(message, wanted, &mut take),
            }
            if flags & NLM_F_DUMP == 0 {
                return Ok(());
            }
        }
    }
}

/// The end of an answer, if this message is it.
fn end(message: &[u8]) -> Option<io::Result<()>> {
    let half = |at: usize| Some(u16::from_ne_bytes(message.get(at..at + 2)?.try_into().ok()?));
    if half(6)? & NLM_F_DUMP_INTR != 0 {
        return Some(Err(io::ErrorKind::Interrupted.into()));
    }
    match half(4)? {
        NLMSG_DONE => Some(Ok(())),
        NLMSG_ERROR => {
            let code = message.get(HEADER_LEN..HEADER_LEN + 4)?.try_into().ok()?;
            match i32::from_ne_bytes(code) {
                0 => Some(Ok(())),
                code => Some(Err(io::Error::from_raw_os_error(code.saturating_neg()))),
            }
        }
        _ => None,
    }
}

fn each(message: &[u8], wanted: u16, take: &mut impl FnMut(u8, &[u8])) {
    let kind = message.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let family = message.get(HEADER_LEN);
    let body = message.get(HEADER_LEN + FAMILY_LEN..);
    if let (Some(kind), Some(family), Some(body)) = (kind, family, body)
        && kind == NFTABLES | wanted
    {
        take(*family, body);
    }
}
