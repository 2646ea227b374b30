//! Offloads of every device on the way, on both paths, for every kind of load
//! and receiver. `FLANNEL_OFFLOADS=all` runs all combinations instead of those
//! in which every two values meet.

use flannel_offloads::cells::{all, pairwise};
use flannel_offloads::run::Matrix;

#[test]
fn what_is_sent_arrives_whatever_cuts_and_merges_it() {
    let every = std::env::var("FLANNEL_OFFLOADS").is_ok_and(|value| value == "all");
    let cells = if every { all() } else { pairwise() };
    let mut matrix = Matrix::new();
    let mut wrong = Vec::new();
    for (number, cell) in cells.iter().enumerate() {
        let seen = matrix.run(*cell);
        println!("{}/{} {cell}: {seen:?}", number + 1, cells.len());
        if !seen.complaints.is_empty() {
            wrong.push(format!("{cell}: {}", seen.complaints.join("; ")));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
}
