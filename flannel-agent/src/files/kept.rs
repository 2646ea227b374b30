//! A file that is kept as we left it: somebody may delete or overwrite it. It is written
//! beside its caller, who has other things to do while a disk does not answer.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::WriteError;
use super::stamp::Stamp;
use crate::task::Panicked;

/// A disk that has not answered for so long is told of.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What was written, and how the file looked then.
#[derive(Debug)]
pub struct KeptFile<T> {
    left: Option<(T, Stamp)>,
    writing: Option<Writing<T>>,
    /// How often it was put right.
    repaired: u64,
}

impl<T> Default for KeptFile<T> {
    fn default() -> Self {
        Self { left: None, writing: None, repaired: 0 }
    }
}

/// A write that has not ended.
#[derive(Debug)]
struct Writing<T> {
    value: T,
    /// How the file looked before it.
    stamp: Option<Stamp>,
    /// We had left the file with this value.
    left: bool,
    began: Instant,
    ended: Receiver<Result<(), WriteError>>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug)]
pub struct Manner<'a> {
    /// Is notified when a write has ended.
    pub ended: &'a Arc<Notify>,
    /// So long the caller waits for it.
    pub patience: Duration,
    /// Nothing has happened in its directory since the last call.
    pub untouched: bool,
}

impl<T: Clone + PartialEq + Send + 'static> KeptFile<T> {
    /// Lets `write` write the file unless it is as we left it: one system call then, none
    /// where its directory is untouched.
    /// `write` touches nothing that is right. `None`: it has not ended yet. Within a tokio
    /// runtime.
    ///
    /// # Errors
    /// It cannot be written, or the disk has not answered for [`PATIENCE`].
    pub fn ensure(
        &mut self,
        path: &Path,
        value: &T,
        manner: Manner<'_>,
        write: impl FnOnce(T) -> Result<(), WriteError> + Send + 'static,
    ) -> Option<Result<(), WriteError>> {
        if let Some(writing) = self.writing.take() {
            match writing.ended.try_recv() {
                Ok(result) => {
                    let same = writing.value == *value;
                    let ended = self.end(path, writing, result);
                    if same || ended.is_err() {
                        return Some(ended);
                    }
                }
                Err(TryRecvError::Empty) => {
                    let late = writing.began.elapsed() >= PATIENCE;
                    self.writing = Some(writing);
                    return late.then(|| Err(no_answer(path)));
                }
                Err(TryRecvError::Disconnected) => {
                    let source = io::Error::other(Panicked);
                    return Some(Err(WriteError {
                        path: path.to_owned(),
                        step: "writing",
                        source,
                    }));
                }
            }
        }
        let known = self.left.as_ref().filter(|(written, _)| written == value);
        if known.is_some() && manner.untouched {
            return Some(Ok(()));
        }
        let stamp = Stamp::of(path);
        if known.is_some_and(|(_, left)| Some(*left) == stamp) {
            return Some(Ok(()));
        }
        let left = self.left.take().is_some_and(|(written, _)| written == *value);
        let writing = begin(value, (stamp, left), manner.ended, write);
        match writing.ended.recv_timeout(manner.patience) {
            Ok(result) => Some(self.end(path, writing, result)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.writing = Some(writing);
                None
            }
        }
    }

    /// How often it was put right since the last call: somebody had changed or removed it.
    pub fn take_repaired(&mut self) -> u64 {
        std::mem::take(&mut self.repaired)
    }

    fn end(
        &mut self,
        path: &Path,
        writing: Writing<T>,
        result: Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        result?;
        let now = Stamp::of(path);
        // What is right is not written, and keeps its stamp.
        self.repaired += u64::from(writing.left && now != writing.stamp);
        // What was written just now is read once more: somebody may have been faster.
        let right = writing.stamp.filter(|stamp| now == Some(*stamp));
        self.left = right.map(|stamp| (writing.value, stamp));
        Ok(())
    }
}

fn begin<T: Clone + Send + 'static>(
    value: &T,
    (stamp, left): (Option<Stamp>, bool),
    notify: &Arc<Notify>,
    write: impl FnOnce(T) -> Result<(), WriteError> + Send + 'static,
) -> Writing<T> {
    let (sender, ended) = mpsc::channel();
    let written = value.clone();
    let teller = Teller { sender, _end: End(Arc::clone(notify)) };
    tokio::task::spawn_blocking(move || {
        let teller = teller;
        let _ = teller.sender.send(write(written));
    });
    Writing { value: value.clone(), stamp, left, began: Instant::now(), ended }
}

/// Tells of a write's end, and then that there is something to hear, after a panic too.
struct Teller {
    sender: Sender<Result<(), WriteError>>,
    _end: End,
}

struct End(Arc<Notify>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn no_answer(path: &Path) -> WriteError {
    let text = format!("the disk has not answered for {} s", PATIENCE.as_secs());
    let source = io::Error::new(io::ErrorKind::TimedOut, text);
    WriteError { path: path.to_owned(), step: "waiting", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    #[tokio::test]
    async fn a_write_that_panics_is_told_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let ended = Arc::new(Notify::new());
        let manner = Manner { ended: &ended, patience: AT_ONCE, untouched: false };
        let mut file = KeptFile::default();
        // None ends before its caller has gone on.
        let (answer, hung) = mpsc::channel::<()>();
        let fall = move |_| {
            let _ = hung.recv();
            panic!("as it is to")
        };
        assert!(file.ensure(&path, &1, manner, fall).is_none());
        drop(answer);
        ended.notified().await;
        let unwanted = |_| panic!("its end is to be told first");
        let error = file.ensure(&path, &1, manner, unwanted).unwrap().unwrap_err();
        assert!(error.to_string().contains("writing: it panicked"), "{error}");
        let (answer, hung) = mpsc::channel::<()>();
        let write = move |_| {
            let _ = hung.recv();
            Ok(())
        };
        assert!(file.ensure(&path, &1, manner, write).is_none());
        drop(answer);
        ended.notified().await;
        assert!(file.ensure(&path, &1, manner, |_| Ok(())).unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let ended = Arc::new(Notify::new());
        let manner = |patience| Manner { ended: &ended, patience, untouched: false };
        let (answer, hung) = mpsc::channel::<()>();
        let mut file = KeptFile::default();
        let to = path.clone();
        let write = move |value: &[u8; 1]| {
            let _ = hung.recv();
            super::super::write_atomically(&to, value)
        };
        let began = Instant::now();
        assert!(file.ensure(&path, &b"1", manner(AT_ONCE), write).is_none());
        let unwanted = |_: &[u8; 1]| panic!("one at a time");
        assert!(file.ensure(&path, &b"2", manner(AT_ONCE), unwanted).is_none());
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(PATIENCE).await;
        let error = file.ensure(&path, &b"2", manner(AT_ONCE), unwanted).unwrap().unwrap_err();
        assert!(error.to_string().contains("not answered for 2 s"), "{error}");
        answer.send(()).unwrap();
        ended.notified().await;
        let to = path.clone();
        let write = move |value: &[u8; 1]| super::super::write_atomically(&to, value);
        let written = file.ensure(&path, &b"2", manner(Duration::from_secs(60)), write);
        assert!(written.unwrap().is_ok());
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
    }
}
