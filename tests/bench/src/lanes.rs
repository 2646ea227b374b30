//! What runs in one round: rows, each with one build of the agent or with two.
//! Pure.

use serde::{Deserialize, Serialize};

use super::rows::{Row, Setup};

/// One of two builds that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Build {
    /// The agent of this source tree.
    This,
    /// The one that it is compared with.
    Other,
}

impl Build {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::This => "this",
            Self::Other => "other",
        }
    }
}

/// A row with one build's agents on its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The row.
    pub row: Row,
    /// `None`: there is only one build.
    pub build: Option<Build>,
}

impl Lane {
    /// What tables call it: the row, and the build if there are two.
    pub fn title(&self) -> String {
        match self.build {
            Some(build) => format!("{} [{}]", self.row.title, build.name()),
            None => self.row.title.to_owned(),
        }
    }
}

/// The lanes of rows, in the table's order.
pub(super) fn lanes(rows: &[Row], two: bool) -> Vec<Lane> {
    let builds: &[_] = if two { &[Some(Build::This), Some(Build::Other)] } else { &[None] };
    rows.iter()
        .flat_map(|row| builds.iter().map(|build| Lane { row: *row, build: *build }))
        .collect()
}

/// The order of the lanes in a round (counted from 0).
///
/// Each round begins with another row: no row is always the first. The builds
/// of a row run one right after the other, so that both meet the same machine,
/// and change places from round to round: none is always the first.
pub(super) fn order(lanes: &[Lane], round: usize) -> Vec<Lane> {
    let mut rows: Vec<Vec<Lane>> = Vec::new();
    for lane in lanes {
        match rows.last_mut() {
            Some(row) if row[0].row == lane.row => row.push(*lane),
            _ => rows.push(vec![*lane]),
        }
    }
    let first = round % rows.len().max(1);
    rows.rotate_left(first);
    if round % 2 == 1 {
        rows.iter_mut().for_each(|row| row.reverse());
    }
    rows.concat()
}

/// What nodes are needed, each once.
pub(super) fn sites(lanes: &[Lane]) -> Vec<(Setup, Option<Build>)> {
    let mut sites = Vec::new();
    for site in lanes.iter().map(|lane| (lane.row.setup, lane.build)) {
        if !sites.contains(&site) {
            sites.push(site);
        }
    }
    sites
}

#[cfg(test)]
mod tests {
    use super::super::rows::{EBPF, HOST, KERNEL, ROWS, rows};
    use super::*;

    fn titles(lanes: &[Lane]) -> Vec<String> {
        lanes.iter().map(Lane::title).collect()
    }

    #[test]
    fn one_build_has_no_name() {
        assert_eq!(titles(&lanes(&rows(&[HOST, EBPF]), false)), [HOST, EBPF]);
    }

    #[test]
    fn builds_stand_side_by_side_and_change_places() {
        let lanes = lanes(&rows(&[HOST, EBPF]), true);
        let [host, ebpf] = [
            ["host to host [this]", "host to host [other]"],
            ["eBPF path [this]", "eBPF path [other]"],
        ];
        assert_eq!(titles(&lanes), [host, ebpf].concat());
        assert_eq!(titles(&order(&lanes, 0)), [host, ebpf].concat());
        let turned = [ebpf, host].map(|[this, other]| [other, this]).concat();
        assert_eq!(titles(&order(&lanes, 1)), turned);
        assert_eq!(order(&lanes, 2), order(&lanes, 0));
        assert_eq!(order(&[], 3), []);
    }

    #[test]
    fn every_build_is_as_often_the_first() {
        let lanes = lanes(ROWS, true);
        for lane in lanes.iter().filter(|lane| lane.build == Some(Build::This)) {
            let other = Lane { build: Some(Build::Other), ..*lane };
            let mut first = 0;
            for round in 0..6 {
                let order = order(&lanes, round);
                assert_eq!(order.len(), lanes.len());
                let place = |lane| order.iter().position(|found| *found == lane).unwrap();
                assert_eq!(place(*lane).abs_diff(place(other)), 1, "one right after the other");
                first += usize::from(place(*lane) < place(other));
            }
            assert_eq!(first, 3, "{}", lane.title());
        }
    }

    #[test]
    fn equal_nodes_are_made_once_for_each_build() {
        let shared = rows(&[HOST, KERNEL]);
        assert_eq!(sites(&lanes(&shared, false)).len(), 1, "hosts of the kernel path's nodes");
        assert_eq!(sites(&lanes(&shared, true)).len(), 2);
        assert_eq!(sites(&lanes(ROWS, false)).len(), ROWS.len() - 1);
    }
}
