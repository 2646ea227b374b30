//! The agent's sign of life, by which the programs know whether somebody keeps
//! the tables true.

use aya::maps::{Array, MapData};
use flannel_ebpf::abi::{self, Attendance};

use super::BpfError;
use super::clock::monotonic_ns;
use super::maps::typed;
use super::programs::Programs;

/// The map of it.
pub(super) struct SignOfLife {
    map: Array<MapData, Attendance>,
    /// What was written last.
    given: Option<Attendance>,
}

impl SignOfLife {
    pub(super) fn take(programs: &mut Programs) -> Result<Self, BpfError> {
        typed(programs, abi::map::ATTENDED).map(|map| Self { map, given: None })
    }

    /// The tables are true now.
    pub(super) fn give(&mut self) -> Result<(), BpfError> {
        let time_ns = monotonic_ns()?;
        self.write(Attendance { time_ns, ..Attendance::default() })
    }

    /// Nobody keeps them true from now on.
    pub(super) fn end(&mut self) -> Result<(), BpfError> {
        let last = self.read()?;
        self.write(Attendance { left: 1, ..last })
    }

    /// Writes the last one again if somebody else has written; whether that was so.
    pub(super) fn mend(&mut self) -> Result<bool, BpfError> {
        let Some(given) = self.given else { return Ok(false) };
        let changed = self.read()? != given;
        if changed {
            self.write(given)?;
        }
        Ok(changed)
    }

    fn read(&self) -> Result<Attendance, BpfError> {
        let last = self.map.get(&0, 0);
        last.map_err(|error| BpfError::new("read map", abi::map::ATTENDED, &error))
    }

    fn write(&mut self, sign: Attendance) -> Result<(), BpfError> {
        self.given = Some(sign);
        let written = self.map.set(0, sign, 0);
        written.map_err(|error| BpfError::new("write map", abi::map::ATTENDED, &error))
    }
}
