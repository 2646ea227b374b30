//! A file that is kept as we left it: somebody may delete or overwrite it.

use std::path::Path;

use super::WriteError;
use super::stamp::Stamp;

/// What was written, and how the file looked then.
#[derive(Debug)]
pub struct KeptFile<T>(Option<(T, Stamp)>);

impl<T> Default for KeptFile<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone + PartialEq> KeptFile<T> {
    /// Lets `write` write the file unless it is as we left it: one system call then.
    /// `write` touches nothing that is right.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn ensure(
        &mut self,
        path: &Path,
        value: &T,
        write: impl FnOnce() -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let stamp = Stamp::of(path);
        if let (Some((written, left)), Some(now)) = (&self.0, stamp)
            && written == value
            && *left == now
        {
            return Ok(());
        }
        self.0 = None;
        write()?;
        // What was written just now is read once more: somebody may have been faster.
        let right = stamp.filter(|stamp| Stamp::of(path) == Some(*stamp));
        self.0 = right.map(|stamp| (value.clone(), stamp));
        Ok(())
    }
}
