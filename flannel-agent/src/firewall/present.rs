//! What the kernel itself says of nftables: programs need not be run to learn that
//! there is nothing to list.

use crate::kernel::nftables;

/// The tables of this network namespace; `None` if the kernel does not tell.
#[derive(Debug)]
pub(super) struct PresentTables(Option<Vec<(&'static str, String)>>);

impl PresentTables {
    /// As it is now.
    pub(super) fn read() -> Self {
        let tables = nftables::tables();
        if let Err(error) = &tables {
            tracing::debug!(%error, "tables not listed by the kernel; the programs are asked");
        }
        Self(tables.ok())
    }

    /// Whether there may be this table.
    pub(super) fn may_have(&self, family: &str, name: &str) -> bool {
        let is = |table: &(&str, String)| (table.0, table.1.as_str()) == (family, name);
        self.0.as_ref().is_none_or(|tables| tables.iter().any(is))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_may_be_there() {
        let present = PresentTables(Some(vec![("ip", "nat".to_owned())]));
        assert!(present.may_have("ip", "nat"));
        assert!(!present.may_have("ip6", "nat") && !present.may_have("ip", "filter"));
        assert!(PresentTables(None).may_have("ip", "filter"));
    }
}
