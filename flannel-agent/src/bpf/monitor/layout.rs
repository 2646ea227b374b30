//! Where the running kernel's structures have their members, from its BTF.

use btfparse::{Error, ErrorKind, Offset, Readable, TypeInformation};
use flannel_ebpf::monitor::Layout;

use crate::bpf::BpfError;

/// The kernel's types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Bytes that are read as a file.
struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.0.get(start..start.saturating_add(to.len())) {
            Some(from) => {
                to.copy_from_slice(from);
                Ok(())
            }
            None => Err(Error::new(ErrorKind::EOF, "beyond its end")),
        }
    }
}

/// Reads them.
///
/// # Errors
/// The kernel has no BTF, or a structure is not as it is known to be.
pub(super) fn read() -> Result<Layout, BpfError> {
    let bytes = std::fs::read(BTF).map_err(|error| {
        BpfError::new("read", BTF, &error)
            .with_hint("the kernel has to be built with CONFIG_DEBUG_INFO_BTF")
    })?;
    let types = TypeInformation::new(&Bytes(bytes))
        .map_err(|error| BpfError::plain("parse", BTF, error.message()))?;
    let offset = |structure: &str, member: &str| {
        let absent = |reason: String| {
            BpfError::plain("find member", format!("{structure}.{member} in {BTF}"), reason)
        };
        let id = types.id_of(structure).ok_or_else(|| absent("no such structure".to_owned()))?;
        match types.offset_of(id, member) {
            Ok((_, Offset::ByteOffset(bytes))) => Ok(bytes),
            Ok(_) => Err(absent("it is a bit field".to_owned())),
            Err(error) => Err(absent(error.message().to_owned())),
        }
    };
    Ok(Layout {
        skb_data: offset("sk_buff", "data")?,
        skb_len: offset("sk_buff", "len")?,
        skb_data_len: offset("sk_buff", "data_len")?,
        skb_dev: offset("sk_buff", "dev")?,
        dev_ifindex: offset("net_device", "ifindex")?,
        xdp_data: offset("xdp_buff", "data")?,
        xdp_data_end: offset("xdp_buff", "data_end")?,
        xdp_rxq: offset("xdp_buff", "rxq")?,
        rxq_dev: offset("xdp_rxq_info", "dev")?,
    })
}
