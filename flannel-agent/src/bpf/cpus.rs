//! How many CPUs there are.

use super::BpfError;

/// CPUs that may ever be there.
///
/// # Errors
/// `/sys/devices/system/cpu/possible` cannot be read.
pub(super) fn possible_cpus() -> Result<u32, BpfError> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| BpfError::new("count CPUs", path.to_owned(), &error))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
}
