//! What the entry hooks do with a packet of a known kind that they leave to the kernel:
//! they write it down, so that it can prove its flow at the exit.

use super::segment::Segment;
use super::ticket::{Entry, Noted};
use super::{Skb, Tables, flow};
use crate::abi::{Config, Outcome, ticket_flag};
use crate::wire;

/// Whether a packet can prove its flow, by the reason for which the kernel carries it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Grounds {
    /// It cannot.
    None,
    /// If the proof that stands has stood for a moment. A flow of mixed packets would be
    /// proven again with each.
    Settled,
    /// It can.
    All,
}

impl Grounds {
    /// Those of a reason.
    #[inline(always)]
    pub(super) fn of(reason: Outcome) -> Self {
        match reason {
            Outcome::KernelRule => Self::None,
            Outcome::KernelDiffers => Self::Settled,
            _ if flow::is_ordinary(reason) => Self::All,
            _ => Self::None,
        }
    }
}

/// A packet that is left to the kernel.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    /// The packet.
    pub segment: &'a Segment,
    /// What else the hook knows.
    pub entry: &'a Entry,
    /// [`direction`](crate::abi::direction) of its flow.
    pub direction: u8,
    /// Whether it can prove its flow.
    pub grounds: Grounds,
    /// [`ticket_flag::SHORTCUT`] or nothing.
    pub flags: u8,
    /// It is written down even if it proves nothing.
    pub always: bool,
}

impl Left<'_> {
    /// Writes the packet down, if somebody asks for it at the exit. `found` is what stands
    /// under its flow's key.
    #[inline(always)]
    pub fn leave<S: Skb, T: Tables>(
        self,
        frame: &mut S,
        tables: &T,
        found: Option<&T::FlowRef<'_>>,
    ) {
        let Self { segment, entry, direction, grounds, flags, always } = self;
        let Some(config) = tables.config() else { return };
        let key = segment.key(direction);
        let settled = found.is_some_and(|flow| flow::is_settled(flow, config, &key, entry.now));
        let proves = grounds == Grounds::All || (grounds == Grounds::Settled && settled);
        let proves = config.unsure(proves && may_prove(config, segment));
        if !proves && !always {
            return;
        }
        let flags = if proves { flags | ticket_flag::FLOW } else { flags };
        Noted { segment, entry, direction, flags }.take(frame, tables);
        // None that came before it, by whatever CPU, may confirm the flow.
        if let Some(flow) = found
            && proves
            && flow::is_senders(flow, &key, entry)
        {
            let number = frame.ticket();
            tables.edit_flow(flow, |flow| flow.entered = number.into());
        }
    }
}

/// The end of a connection proves nothing, nor does its begin, but for a pair.
#[inline(always)]
fn may_prove(config: &Config, segment: &Segment) -> bool {
    let ends = segment.tcp_flags & (wire::TCP_FIN | wire::TCP_RST) != 0;
    !ends && (!segment.is_syn() || flow::opens(config, segment))
}
