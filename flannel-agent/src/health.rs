//! What is wrong at the moment: kept for status, logged once each.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

/// Complaints that are kept; more are counted only.
const LIMIT: usize = 100;

/// All present complaints, by what they are about.
#[derive(Debug, Default)]
pub struct Health {
    complaints: BTreeMap<String, Complaint>,
}

#[derive(Debug)]
struct Complaint {
    reason: String,
    since: Instant,
}

/// One complaint, as status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What it is about.
    pub what: String,
    /// Why.
    pub reason: String,
    /// For how long.
    pub since_seconds: u64,
}

impl Health {
    /// Complains, or goes on complaining. Logs only what is new.
    pub fn complain(&mut self, what: &str, reason: impl Into<String>) {
        let reason = reason.into();
        let full = self.complaints.len() >= LIMIT;
        match self.complaints.get_mut(what) {
            Some(complaint) if complaint.reason == reason => {}
            Some(complaint) => {
                tracing::warn!(what, reason, "still not well");
                complaint.reason = reason;
            }
            None if full => {
                tracing::debug!(what, reason, "not well; not listed, too many complaints");
            }
            None => {
                tracing::warn!(what, reason, "not well");
                self.complaints
                    .insert(what.to_owned(), Complaint { reason, since: Instant::now() });
            }
        }
    }

    /// It is well (again).
    pub fn well(&mut self, what: &str) {
        if self.complaints.remove(what).is_some() {
            tracing::info!(what, "well again");
        }
    }

    /// Sets complaint or well-being from a result's error text.
    pub fn report(&mut self, what: &str, reason: Option<String>) {
        match reason {
            Some(reason) => self.complain(what, reason),
            None => self.well(what),
        }
    }

    /// Of all complaints whose subject starts with `prefix`, keeps these.
    pub fn replace_group(&mut self, prefix: &str, present: &BTreeMap<String, String>) {
        let gone: Vec<String> = self
            .complaints
            .keys()
            .filter(|what| what.starts_with(prefix) && !present.contains_key(*what))
            .cloned()
            .collect();
        for what in gone {
            self.well(&what);
        }
        for (what, reason) in present {
            self.complain(what, reason);
        }
    }

    /// The reason of a complaint, if there is one.
    pub fn reason(&self, what: &str) -> Option<&str> {
        self.complaints.get(what).map(|complaint| complaint.reason.as_str())
    }

    /// All complaints.
    pub fn lines(&self) -> Vec<Line> {
        self.complaints
            .iter()
            .map(|(what, complaint)| Line {
                what: what.clone(),
                reason: complaint.reason.clone(),
                since_seconds: complaint.since.elapsed().as_secs(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_come_and_go() {
        let mut health = Health::default();
        health.complain("route 10.5.2.0/24", "no such device");
        health.complain("store", "connection refused");
        assert_eq!(health.lines().len(), 2);
        health.well("store");
        assert_eq!(health.lines()[0].what, "route 10.5.2.0/24");
        health.replace_group("route ", &BTreeMap::new());
        assert_eq!(health.lines(), []);
    }

    #[test]
    fn the_list_is_bounded() {
        let mut health = Health::default();
        for number in 0..LIMIT + 10 {
            health.complain(&format!("peer {number}"), "x");
        }
        assert_eq!(health.lines().len(), LIMIT);
    }
}
