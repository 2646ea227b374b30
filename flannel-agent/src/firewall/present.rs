//! What the kernel itself says of nftables: programs need not be run to learn that
//! there is nothing to list.

use crate::kernel::nftables::{self, Table};

/// The tables of this network namespace; `None` if the kernel does not tell.
#[derive(Debug)]
pub(super) struct PresentTables(Option<Vec<Table>>);

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
        self.0.is_none() || self.table(family, name).is_some()
    }

    /// Whether this table is there, and dormant.
    pub(super) fn is_dormant(&self, family: &str, name: &str) -> bool {
        self.table(family, name).is_some_and(|table| table.dormant)
    }

    fn table(&self, family: &str, name: &str) -> Option<&Table> {
        let mut tables = self.0.iter().flatten();
        tables.find(|table| (table.family, table.name.as_str()) == (family, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_may_be_there() {
        let nat = Table { family: "ip", name: "nat".to_owned(), dormant: true };
        let present = PresentTables(Some(vec![nat]));
        assert!(present.may_have("ip", "nat") && present.is_dormant("ip", "nat"));
        assert!(!present.may_have("ip6", "nat") && !present.may_have("ip", "filter"));
        assert!(!present.is_dormant("ip6", "nat"));
        let unknown = PresentTables(None);
        assert!(unknown.may_have("ip", "filter") && !unknown.is_dormant("ip", "filter"));
    }
}
