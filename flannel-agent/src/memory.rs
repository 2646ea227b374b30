//! How much memory the agent may use. Maps count to its control group; what does not
//! fit there ends the process without a word.

mod start;

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use start::give_back;

use crate::bpf::{BpfError, flow_table};

/// What programs and agent need besides the flow table, with thousands of peers.
/// Measured: with 44 MB the start was killed, with 48 MB it was not, of which the
/// default flow table has 15.
const BASE: u64 = 33 << 20;
/// Bytes of the flow table for each entry.
const ENTRY: u64 = 200;
const MEGABYTE: u64 = 1 << 20;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Why the programs do not fit into the control group's memory, if so.
///
/// # Errors
/// The size of the flow table cannot be told.
pub fn refusal(flows: u32) -> Result<Option<String>, BpfError> {
    let need = BASE + ENTRY * u64::from(flow_table::entries(flows)?);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = limit(&own, Path::new(CGROUPS)).filter(|limit| *limit < need);
    Ok(limit.map(|limit| {
        format!(
            "the control group allows {} MB of memory, and the programs need about {}: raise its \
             limit (MemoryMax= in the unit), or lower --flow-table-size, which is {flows}",
            limit / MEGABYTE,
            need.div_ceil(MEGABYTE)
        )
    }))
}

/// The smallest limit of a process's control groups (`/proc/<pid>/cgroup`), of both
/// versions.
fn limit(own: &str, root: &Path) -> Option<u64> {
    let groups = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        match controllers {
            "" => Some((root.to_owned(), path, "memory.max")),
            _ if controllers.split(',').any(|one| one == "memory") => {
                Some((root.join("memory"), path, "memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    groups.filter_map(|(root, path, file)| least(&root, path, file)).min()
}

/// The least limit from a group up to the root.
fn least(root: &Path, path: &str, file: &str) -> Option<u64> {
    let group: PathBuf = root.join(path.trim_start_matches('/'));
    let up = group.ancestors().take_while(|folder| folder.starts_with(root));
    up.filter_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |own: &str| limit(own, root.path());
        assert_eq!(limit("0::/system.slice/flanneld.service\n"), None);
        write("system.slice/flanneld.service/memory.max", "max\n");
        assert_eq!(limit("0::/system.slice/flanneld.service\n"), None);
        write("system.slice/memory.max", "50000000\n");
        assert_eq!(limit("0::/system.slice/flanneld.service\n"), Some(50_000_000));
        write("system.slice/flanneld.service/memory.max", "33554432\n");
        assert_eq!(limit("0::/system.slice/flanneld.service\n"), Some(32 << 20));
        write("memory/a/memory.limit_in_bytes", "1000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("9:pids:/\n4:cpu,memory:/a/b\n0::/\n"), Some(1000));
        assert_eq!(limit("nonsense"), None);
    }
}
