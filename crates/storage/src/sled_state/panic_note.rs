//! Leaves a note when the engine panics, because a release build aborts and cannot catch it.
//!
//! The engine is only called inside [`noting`], which tells a panic hook where the note of this
//! store lies. The hook (installed once, before the previous one, which still runs) does nothing
//! for a panic anywhere else. The next start finds the note and discards the state; without it a
//! damaged page that panics when it is read would end the process again and again.

use std::cell::RefCell;
use std::panic;
use std::path::Path;
use std::sync::{Arc, Once};

thread_local! {
    static NOTE: RefCell<Option<Arc<Path>>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs `call`; if it panics, the reason is written to `note`.
pub(super) fn noting<T>(note: &Arc<Path>, call: impl FnOnce() -> T) -> T {
    let _restore = Restore(NOTE.replace(Some(Arc::clone(note))));
    call()
}

/// Writes the reason why a store must be discarded at its next start.
pub(super) fn write(note: &Path, reason: &str) -> std::io::Result<()> {
    std::fs::write(note, reason)
}

/// Prepares the process. Called before a store is opened.
pub(super) fn install_hook() {
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            let note = NOTE.try_with(|note| note.try_borrow().ok().and_then(|note| note.clone()));
            if let Ok(Some(note)) = note {
                // The process is about to end; a failure to write has nobody to be told to.
                let _ = write(&note, &format!("the engine panicked: {panicked}"));
            }
            previous(panicked);
        }));
    });
}

/// Puts back the note of the enclosing call.
struct Restore(Option<Arc<Path>>);

impl Drop for Restore {
    fn drop(&mut self) {
        NOTE.set(self.0.take());
    }
}
