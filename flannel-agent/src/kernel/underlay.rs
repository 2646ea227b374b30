//! What choosing an underlay needs of the kernel beside links.

use flannel_core::underlay::{UnderlayRoutes, Wish};

use super::{Kernel, KernelError};

/// Asks for the routes that [`flannel_core::underlay::choose`] needs.
///
/// # Errors
/// The kernel's.
pub async fn routes_for<K: Kernel>(kernel: &K, wish: &Wish) -> Result<UnderlayRoutes, KernelError> {
    let mut routes = UnderlayRoutes::default();
    if let Some(destination) = wish.can_reach {
        routes.reach = kernel.route_to(destination).await?;
    }
    if !wish.names_an_interface() {
        routes.defaults = kernel.default_routes().await?;
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use flannel_core::link::RouteTo;
    use regex::Regex;

    use super::*;
    use crate::kernel::fake::FakeKernel;

    #[tokio::test]
    async fn only_the_routes_that_matter_are_asked_for() {
        let kernel = FakeKernel::default();
        let far = Ipv4Addr::new(192, 0, 2, 9);
        let to = |ifindex| RouteTo { ifindex, source: None, gateway: None };
        kernel.state().defaults = vec![to(2), to(4)];
        kernel.state().routes.insert(far, to(3));
        let ask = async |wish: Wish| routes_for(&kernel, &wish).await.unwrap();
        // A public address that is no local one leaves the choice to the default route.
        let published = Wish { public_ip: Some(Ipv4Addr::new(203, 0, 113, 9)), ..Wish::default() };
        assert_eq!(
            ask(published).await,
            UnderlayRoutes { defaults: vec![to(2), to(4)], reach: None }
        );
        let reach = Wish { can_reach: Some(far), ..Wish::default() };
        assert_eq!(ask(reach).await, UnderlayRoutes { defaults: Vec::new(), reach: Some(to(3)) });
        let pattern = Wish { iface_regex: vec![Regex::new("eth0").unwrap()], ..Wish::default() };
        assert_eq!(ask(pattern).await, UnderlayRoutes::default());
    }
}
