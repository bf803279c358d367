//! Calls completions, in the order of their changes.
//!
//! To wake somebody costs a few microseconds. Where many wait for one frame, that is as long as its
//! fsync takes: a thread of its own does it while the next frame is being written. Few are called at
//! once, if nobody is still to be called before them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, ThreadId};

use crate::log_store::{Completion, LogError};

/// So many are called by the writer itself, at most.
const OWN_MAX: usize = 8;

type Told = VecDeque<(Completion, Result<(), LogError>)>;

/// Calls completions. Dropping it waits until all are called.
pub(in super::super) struct Completer {
    sender: Option<Sender<Told>>,
    thread: Option<JoinHandle<()>>,
    /// Batches that are handed over and not called to the end.
    pending: Arc<AtomicUsize>,
}

impl Completer {
    /// # Errors
    /// If the system gives no thread.
    pub(in super::super) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&pending);
        let builder = std::thread::Builder::new().name("log-completer".to_owned());
        let thread = builder.spawn(move || call_all(&receiver, &left))?;
        Ok(Self { sender: Some(sender), thread: Some(thread), pending })
    }

    pub(in super::super) fn thread_id(&self) -> Option<ThreadId> {
        self.thread.as_ref().map(|thread| thread.thread().id())
    }

    /// Sees to it that these are called after all before them.
    pub(super) fn complete(&self, told: Told) {
        if told.is_empty() {
            return;
        }
        if told.len() <= OWN_MAX && self.pending.load(Ordering::Acquire) == 0 {
            call(told);
            return;
        }
        self.pending.fetch_add(1, Ordering::Relaxed);
        let unsent = self.sender.as_ref().and_then(|sender| sender.send(told).err());
        if let Some(unsent) = unsent {
            call(unsent.0); // A completion has panicked there. The others are not to wait for ever.
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        self.sender.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a completion of the log panicked");
        }
    }
}

fn call_all(receiver: &Receiver<Told>, pending: &AtomicUsize) {
    for told in receiver {
        call(told);
        pending.fetch_sub(1, Ordering::Release);
    }
}

fn call(told: Told) {
    for (done, outcome) in told {
        done(outcome);
    }
}
