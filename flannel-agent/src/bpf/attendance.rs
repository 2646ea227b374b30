//! The agent's sign of life, by which the programs know whether somebody keeps
//! the tables true.

use aya::maps::{Array, MapData};
use flannel_ebpf::abi::{self, Attendance};
use nix::time::{ClockId, clock_gettime};

use super::BpfError;
use super::maps::typed;
use super::programs::Programs;

/// The map of it.
pub(super) struct SignOfLife(Array<MapData, Attendance>);

impl SignOfLife {
    pub(super) fn take(programs: &mut Programs) -> Result<Self, BpfError> {
        typed(programs, abi::map::ATTENDED).map(Self)
    }

    /// The tables are true now.
    pub(super) fn give(&mut self) -> Result<(), BpfError> {
        let time_ns = monotonic_ns()?;
        self.write(Attendance { time_ns, ..Attendance::default() })
    }

    /// Nobody keeps them true from now on.
    pub(super) fn end(&mut self) -> Result<(), BpfError> {
        let last = self.0.get(&0, 0);
        let last = last.map_err(|error| BpfError::new("read map", abi::map::ATTENDED, &error))?;
        self.write(Attendance { left: 1, ..last })
    }

    fn write(&mut self, sign: Attendance) -> Result<(), BpfError> {
        let written = self.0.set(0, sign, 0);
        written.map_err(|error| BpfError::new("write map", abi::map::ATTENDED, &error))
    }
}

/// The clock of the programs.
pub(super) fn monotonic_ns() -> Result<u64, BpfError> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|errno| BpfError::new("read", "monotonic clock", &std::io::Error::from(errno)))?;
    Ok(u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}
