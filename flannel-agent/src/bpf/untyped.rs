//! A loader that has not read the kernel's types.

use aya::EbpfLoader;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A loader for an object that needs none of the kernel's types.
///
/// [`EbpfLoader::new`] reads and parses all of them before it can be told not to (aya
/// before 0.15, <https://docs.rs/aya/0.14.0/src/aya/bpf.rs.html#161>): 5 MB of
/// `/sys/kernel/btf/vmlinux`, for some 30 ms and 20 MB of memory. It goes on without a
/// file that it cannot open. So no file can be opened meanwhile, by the whole process:
/// only one that does nothing else may call this.
pub(super) fn loader<'a>() -> EbpfLoader<'a> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return EbpfLoader::new() };
    let limited = setrlimit(Resource::RLIMIT_NOFILE, 0, hard).is_ok();
    let loader = EbpfLoader::new();
    if limited && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, soft, hard) {
        tracing::debug!(%error, "limit of open files not restored");
    }
    loader
}
