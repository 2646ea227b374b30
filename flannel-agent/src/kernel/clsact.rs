//! The clsact qdiscs under our filters, which are made for them where there is no tcx and
//! removed when nobody's filter is left; and which program a filter of ours runs.

use flannel_core::envelope::CLSACT_PRIORITY;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

use super::socket::{Refused, Request, RouteSocket};
use super::{KernelError, raw};

/// TC_H_CLSACT: parent of the qdisc; its filters hang at minor 0xfff2 (ingress)
/// and 0xfff3 (egress), `linux/pkt_sched.h`.
const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };
const EGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff3 };
/// Handle of a clsact qdisc.
const HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };

pub(super) const RTM_GETTFILTER: u16 = 46;
pub(super) const ETH_P_ALL: u16 = 3;
/// Bytes of `struct tcmsg`, `linux/rtnetlink.h`.
pub(super) const TCMSG_LEN: usize = 20;
pub(super) const TCA_OPTIONS: u16 = 2;
/// Id of the program, `linux/pkt_cls.h`.
const TCA_BPF_ID: u16 = 11;

/// Asks for filters of ours: one question and its answer for each.
pub struct Filters(RouteSocket);

impl Filters {
    /// Asks in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Netlink cannot be used.
    pub fn open() -> Result<Self, KernelError> {
        let failed = |source| KernelError::new("socket", "NETLINK_ROUTE", source);
        RouteSocket::open().map(Self).map_err(failed)
    }

    /// Id of the program that the filter of ours with this handle runs, on the way in or
    /// out of the interface (`tc_get_tfilter`, net/sched/cls_api.c). `None` also where that
    /// cannot be learnt.
    pub fn program(&mut self, ifindex: u32, egress: bool, handle: u32) -> Option<u32> {
        let parent = if egress { EGRESS } else { INGRESS };
        let info = u32::from(CLSACT_PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
        let mut body = [0; TCMSG_LEN];
        for (at, field) in [(4, ifindex), (8, handle), (12, u32::from(parent)), (16, info)] {
            body[at..at + 4].copy_from_slice(&field.to_ne_bytes());
        }
        let answers = self.0.get_raw(RTM_GETTFILTER, &body).ok()?;
        let attributes = answers.first()?.body.get(TCMSG_LEN..)?;
        let options = raw::attribute(attributes, TCA_OPTIONS)?;
        raw::number(raw::attribute(options, TCA_BPF_ID)?, 0)
    }
}

/// Interfaces with a clsact filter of ours.
///
/// # Errors
/// Netlink cannot be used.
pub fn with_our_filter() -> Result<Vec<i32>, KernelError> {
    let failed = |refused| error("list clsact filters", "of all interfaces".to_owned(), refused);
    let mut socket = RouteSocket::open().map_err(|source| failed(source.into()))?;
    let qdiscs = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let mut found = Vec::new();
    for message in socket.dump(&qdiscs, Some).map_err(failed)? {
        let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = message else { continue };
        let ifindex = qdisc.header.index;
        if qdisc.header.parent == CLSACT
            && priorities(&mut socket, ifindex)?.contains(&CLSACT_PRIORITY)
        {
            found.push(ifindex);
        }
    }
    Ok(found)
}

/// Removes the interface's clsact qdisc, unless a filter hangs on it.
///
/// # Errors
/// The kernel refuses; not if it has gone already.
pub fn remove_if_unused(ifindex: i32) -> Result<(), KernelError> {
    let failed = |refused| error("delete clsact qdisc", format!("of interface {ifindex}"), refused);
    let mut socket = RouteSocket::open().map_err(|source| failed(source.into()))?;
    if !priorities(&mut socket, ifindex)?.is_empty() {
        return Ok(());
    }
    let message = RouteNetlinkMessage::DelQueueDiscipline(message_for(ifindex, CLSACT, HANDLE));
    let request = Request { message, flags: 0 };
    match socket.batch(&[request]).pop() {
        Some(Err(refused))
            if !matches!(refused.errno(), libc::ENOENT | libc::EINVAL | libc::ENODEV) =>
        {
            Err(failed(refused))
        }
        _ => Ok(()),
    }
}

/// Priorities of all filters on an interface's clsact qdisc.
fn priorities(socket: &mut RouteSocket, ifindex: i32) -> Result<Vec<u16>, KernelError> {
    let mut found = Vec::new();
    for parent in [INGRESS, EGRESS] {
        let message = message_for(ifindex, parent, TcHandle::default());
        let priority = |message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => {
                Some((filter.header.info >> 16) as u16)
            }
            _ => None,
        };
        let ask = RouteNetlinkMessage::GetTrafficFilter(message);
        found.extend(socket.dump(&ask, priority).map_err(|refused| {
            error("list clsact filters", format!("of interface {ifindex}"), refused)
        })?);
    }
    Ok(found)
}

fn message_for(ifindex: i32, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex;
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

fn error(call: &'static str, object: String, refused: Refused) -> KernelError {
    KernelError { detail: refused.detail, ..KernelError::new(call, object, refused.source) }
}
