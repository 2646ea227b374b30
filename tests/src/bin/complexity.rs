//! Prints what the committed programs cost the running kernel's verifier;
//! with `--write`, also takes tables from standard input and writes all into
//! the committed one. `cargo xtask complexity` runs it.

use std::io::Read;

use anyhow::{Context, Result};
use flannel_tests::complexity::{TABLE, Table, measure};

fn main() -> Result<()> {
    let mut table = measure()?;
    if std::env::args().nth(1).as_deref() == Some("--write") {
        let mut others = String::new();
        std::io::stdin().read_to_string(&mut others)?;
        // Counts of kernels that were not asked belong to another object.
        table.merge(Table::parse(&others)?);
        std::fs::write(TABLE, table.to_string()).context(TABLE)?;
    }
    print!("{table}");
    Ok(())
}
