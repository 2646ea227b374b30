//! A [`LeaseSource`] in memory, for tests of what uses one.
