//! Backends that need more than routes in the kernel.

pub mod udp;

use crate::kernel::{Kernel, KernelError};

/// Whether the link `name` is an overlay's device: VXLAN's, or the udp
/// backend's. Another program's link may have such a name.
///
/// # Errors
/// The links cannot be read.
pub async fn is_ours<K: Kernel>(kernel: &K, name: &str) -> Result<bool, KernelError> {
    let observed = kernel.observe(name).await?;
    let Some(device) = observed.device else { return Ok(false) };
    if name != udp::DEVICE || device.vxlan.is_some() {
        return Ok(device.vxlan.is_some());
    }
    let links = kernel.links().await?;
    Ok(links.iter().any(|link| link.ifindex == device.ifindex && link.kind == "tun"))
}
