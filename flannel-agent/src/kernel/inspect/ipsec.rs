//! IPsec policies, from NETLINK_XFRM. Offsets are those of `struct
//! xfrm_userpolicy_info` in linux/xfrm.h.

use flannel_core::envelope::IpsecPolicy;
use flannel_core::firewall::packet_rules::ranges::{Addresses, Ports};
use rtnetlink::sys::protocols::NETLINK_XFRM;

use super::super::KernelError;
use super::super::raw::{self, Raw};
use super::super::socket::{RouteSocket, explain};
use super::Inspector;

const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// Length of `struct xfrm_userpolicy_id`.
const ID_LEN: usize = 64;
/// Length of `struct xfrm_userpolicy_info`.
const INFO_LEN: usize = 168;
const SADDR: usize = 16;
const DPORT: usize = 32;
const FAMILY: usize = 40;
const PREFIXLEN_D: usize = 42;
const PREFIXLEN_S: usize = 43;
const PROTO: usize = 44;
const DIR: usize = 160;
const ACTION: usize = 161;
const XFRM_POLICY_OUT: u8 = 1;
const XFRM_POLICY_BLOCK: u8 = 1;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;
/// `struct xfrm_user_tmpl`: the protocol of its `struct xfrm_id`.
const TMPL_PROTO: usize = 20;

impl Inspector {
    pub(super) fn read_ipsec_policies(&mut self) -> Result<Vec<IpsecPolicy>, KernelError> {
        let socket = match self.ipsec.take() {
            Some(socket) => socket,
            None => match RouteSocket::open_for(NETLINK_XFRM) {
                Ok(socket) => socket,
                // A kernel without IPsec has no policies.
                Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
                    return Ok(Vec::new());
                }
                Err(source) => return Err(KernelError::new("socket", "NETLINK_XFRM", source)),
            },
        };
        let found = self.ipsec.insert(socket).dump_raw(XFRM_MSG_GETPOLICY, &[0; ID_LEN]);
        let found =
            found.map_err(|refused| explain("XFRM_MSG_GETPOLICY", "all".to_owned(), refused))?;
        Ok(found.iter().filter_map(policy).collect())
    }
}

/// A policy that may change or stop what the node sends over IPv4.
fn policy(message: &Raw) -> Option<IpsecPolicy> {
    let body = &message.body;
    let attributes = body.get(INFO_LEN..)?;
    let byte = |at: usize| body.get(at).copied();
    let block = byte(ACTION)? == XFRM_POLICY_BLOCK;
    let template = raw::attribute(attributes, XFRMA_TMPL);
    let interface = raw::attribute(attributes, XFRMA_IF_ID).and_then(|id| raw::number(id, 0));
    let ipv4 = matches!(i32::from(raw::short(body, FAMILY)?), libc::AF_INET | libc::AF_UNSPEC);
    if byte(DIR)? != XFRM_POLICY_OUT
        || !ipv4
        || !(block || template.is_some())
        || interface.is_some_and(|id| id != 0)
    {
        return None;
    }
    let (port, mask) = (big_endian(body, DPORT)?, big_endian(body, DPORT + 2)?);
    let ports = match mask {
        u16::MAX => Ports::of([(port.into(), port.into())]),
        _ => Ports::ALL,
    };
    let address = |at: usize| body.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let (source, destination) = (address(SADDR)?, address(0)?);
    let (from, to) = (byte(PREFIXLEN_S)?.min(32), byte(PREFIXLEN_D)?.min(32));
    let mark = raw::attribute(attributes, XFRMA_MARK);
    let mark = mark.and_then(|mark| Some(raw::number(mark, 0)? & raw::number(mark, 4)?));
    let proto = byte(PROTO)?;
    let text = |address: u32, length: u8| format!("{}/{length}", std::net::Ipv4Addr::from(address));
    Some(IpsecPolicy {
        destination: Addresses::prefix(destination, to),
        ports,
        udp: matches!(i32::from(proto), 0 | libc::IPPROTO_UDP),
        marked: mark.is_some_and(|mark| mark != 0),
        does: match template.and_then(|template| template.get(TMPL_PROTO)).copied() {
            _ if block => "block".to_owned(),
            Some(50) => "esp".to_owned(),
            Some(51) => "ah".to_owned(),
            other => format!("IPsec protocol {}", other.unwrap_or(0)),
        },
        text: format!("src {} dst {}", text(source, from), text(destination, to)),
    })
}

fn big_endian(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(change: impl FnOnce(&mut Vec<u8>)) -> Raw {
        let mut body = vec![0; INFO_LEN];
        body[..4].copy_from_slice(&[192, 0, 2, 7]);
        body[SADDR..SADDR + 4].copy_from_slice(&[192, 0, 2, 1]);
        body[DPORT..DPORT + 4].copy_from_slice(&[0x21, 0x18, 0xff, 0xff]);
        body[FAMILY..FAMILY + 2].copy_from_slice(&2u16.to_ne_bytes());
        (body[PREFIXLEN_D], body[PREFIXLEN_S], body[PROTO]) = (32, 32, 17);
        (body[DIR], body[ACTION]) = (XFRM_POLICY_OUT, XFRM_POLICY_BLOCK);
        change(&mut body);
        Raw { kind: 0x13, body }
    }

    #[test]
    fn a_policy_is_read() {
        let found = policy(&message(|_| ())).expect("it blocks");
        assert_eq!(found.text, "src 192.0.2.1/32 dst 192.0.2.7/32");
        assert_eq!((found.does.as_str(), found.udp, found.marked), ("block", true, false));
        assert_eq!(found.ports, Ports::of([(8472, 8472)]));
        let mut template = vec![0; 64];
        template[TMPL_PROTO] = 50;
        let encrypts = policy(&message(|body| {
            body[ACTION] = 0;
            raw::put(body, XFRMA_TMPL, &template);
            raw::put(body, XFRMA_MARK, &[1, 0, 0, 0, 0xff, 0, 0, 0]);
        }));
        let encrypts = encrypts.expect("it encrypts");
        assert_eq!((encrypts.does.as_str(), encrypts.marked), ("esp", true));
    }

    #[test]
    fn what_lets_packets_pass_or_is_for_others_is_left_out() {
        assert_eq!(policy(&message(|body| body[DIR] = 0)), None, "inwards");
        assert_eq!(policy(&message(|body| body[ACTION] = 0)), None, "it lets them pass");
        let of_interface = |body: &mut Vec<u8>| raw::put(body, XFRMA_IF_ID, &[7, 0, 0, 0]);
        assert_eq!(policy(&message(of_interface)), None);
        assert_eq!(policy(&message(|body| body[FAMILY] = 10)), None, "IPv6");
        assert_eq!(policy(&Raw { kind: 0x13, body: vec![0; 40] }), None, "cut off");
    }
}
