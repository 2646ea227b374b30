//! Whether somebody keeps the tables true.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The agent's sign of life; the only element of [`map::ATTENDED`](super::map::ATTENDED).
///
/// The programs go on without the agent. But what leases say is true only as long
/// as somebody follows them.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Attendance {
    /// Monotonic time in ns when the agent last kept the tables true; 0: never.
    pub time_ns: u64,
    /// 1: the agent was told to stop.
    pub left: u32,
    /// Always zero.
    pub reserved: u32,
}

impl Attendance {
    /// An agent that is silent for longer counts as gone.
    pub const SILENCE_NS: u64 = 60_000_000_000;

    /// Whether the tables are young enough to send by.
    #[inline(always)]
    pub const fn lasts(&self, now: u64) -> bool {
        self.time_ns != 0 && now < self.time_ns.wrapping_add(Self::SILENCE_NS)
    }

    /// Whether a sender that the tables do not know is none.
    #[inline(always)]
    pub const fn vouches(&self, now: u64) -> bool {
        self.left == 0 && self.lasts(now)
    }
}
