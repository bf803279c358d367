//! How full a disk is, and the ballast that gives room back when it is.
//!
//! [`SpaceRules::next`] decides a node's [`DiskState`] from the free bytes and the state before,
//! with hysteresis: a disk that hovers at a threshold does not make leaderships move to and fro. A
//! [`Ballast`] is a file of reserved space that serves no purpose but to be removed: on a disk that
//! something else has filled, it is the room in which deletes can be written.
//!
//! Not here: asking for the free bytes now and then, and what a node does about the answer
//! (`server::disk`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::FileSystem;

/// How full a node's disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskState {
    /// Has room.
    #[default]
    Normal,
    /// Takes no new data; deletes, votes and purges go on.
    AlmostFull,
    /// Takes nothing that others can take.
    Full,
}

impl DiskState {
    /// Its number between nodes.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::AlmostFull => 1,
            Self::Full => 2,
        }
    }

    /// The state with a number; what this version does not know counts as the worst.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Normal,
            1 => Self::AlmostFull,
            _ => Self::Full,
        }
    }
}

/// When a disk is how full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceRules {
    /// Below this many free bytes it is almost full.
    pub almost_full_bytes: u64,
    /// Below this many free bytes it is full. At most `almost_full_bytes`.
    pub full_bytes: u64,
}

impl SpaceRules {
    /// The state after `state` when `free_bytes` are free. A state gets better only a quarter above
    /// the threshold that made it worse.
    #[must_use]
    pub fn next(&self, state: DiskState, free_bytes: u64) -> DiskState {
        let is_below = |threshold: u64, was_below: bool| {
            let margin = if was_below { threshold / 4 } else { 0 };
            free_bytes < threshold.saturating_add(margin)
        };
        if is_below(self.full_bytes, state == DiskState::Full) {
            DiskState::Full
        } else if is_below(self.almost_full_bytes, state != DiskState::Normal) {
            DiskState::AlmostFull
        } else {
            DiskState::Normal
        }
    }
}

/// The file of reserved space.
#[derive(Clone)]
pub struct Ballast {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    bytes: u64,
}

/// The ballast's name in a data directory.
pub const BALLAST_NAME: &str = "ballast";

impl Ballast {
    /// The ballast of a data directory, `bytes` long; 0 means none.
    #[must_use]
    pub fn new(fs: Arc<dyn FileSystem>, dir: &Path, bytes: u64) -> Self {
        Self { fs, dir: dir.to_owned(), bytes }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(BALLAST_NAME)
    }

    /// Bytes that it holds now.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        // Whatever cannot be opened gives nothing back either.
        self.fs.open(&self.path()).and_then(|file| file.length()).unwrap_or(0)
    }

    /// Puts it in place if it is not, and if `spare_bytes` stay free beside it. Says whether it is
    /// in place.
    ///
    /// # Errors
    /// Whatever the file system says; nothing is left behind then.
    pub fn place(&self, spare_bytes: u64) -> io::Result<bool> {
        if self.bytes == 0 || self.bytes <= self.held_bytes() {
            return Ok(0 < self.bytes);
        }
        // Of another size, or cut short by a crash.
        self.release()?;
        if self.fs.space(&self.dir)? < self.bytes.saturating_add(spare_bytes) {
            return Ok(false);
        }
        match self.fs.create(&self.path(), self.bytes) {
            Ok(_) => Ok(true),
            Err(error) => {
                self.release()?;
                Err(error)
            }
        }
    }

    /// Gives its space back. Says how many bytes that were.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn release(&self) -> io::Result<u64> {
        let held = self.held_bytes();
        match self.fs.remove(&self.path()) {
            Ok(()) => {
                self.fs.sync_dir(&self.dir)?;
                Ok(held)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::MemoryFs;

    const RULES: SpaceRules = SpaceRules { almost_full_bytes: 400, full_bytes: 80 };

    #[test]
    fn a_disk_gets_worse_at_once_and_better_a_quarter_later() {
        use DiskState::{AlmostFull, Full, Normal};
        let course = [
            (1_000, Normal),
            (400, Normal),
            (399, AlmostFull),
            (499, AlmostFull),
            (500, Normal),
            (79, Full),
            (99, Full),
            (100, AlmostFull),
            (0, Full),
            (10_000, Normal),
        ];
        let mut state = Normal;
        for (free, expected) in course {
            state = RULES.next(state, free);
            assert_eq!(state, expected, "{free} bytes free");
        }
    }

    #[test]
    fn a_state_of_a_later_version_counts_as_the_worst() {
        for state in [DiskState::Normal, DiskState::AlmostFull, DiskState::Full] {
            assert_eq!(DiskState::from_number(state.number()), state);
        }
        assert_eq!(DiskState::from_number(9), DiskState::Full);
    }

    #[test]
    fn ballast_is_placed_where_there_is_room_and_gives_it_back() {
        let fs = MemoryFs::new();
        fs.set_space(Some(1_000));
        let dir = Path::new("/data");
        fs.create_dir_all(dir).unwrap();
        let ballast = Ballast::new(Arc::new(fs.clone()), dir, 300);
        assert!(!ballast.place(701).unwrap(), "it would leave too little");
        assert_eq!(ballast.held_bytes(), 0);
        assert!(ballast.place(700).unwrap());
        assert_eq!((ballast.held_bytes(), fs.space(dir).unwrap()), (300, 700));
        assert!(ballast.place(900).unwrap(), "it is in place already");
        assert_eq!(ballast.release().unwrap(), 300);
        assert_eq!((ballast.release().unwrap(), fs.space(dir).unwrap()), (0, 1_000));
    }

    #[test]
    fn ballast_that_finds_no_room_after_all_leaves_nothing_behind() {
        let fs = MemoryFs::new();
        let dir = Path::new("/data");
        fs.create_dir_all(dir).unwrap();
        let ballast = Ballast::new(Arc::new(fs.clone()), dir, 300);
        fs.fail_at(fs.calls(), crate::fs::Fault::NoSpace);
        assert!(ballast.place(0).is_err());
        assert_eq!(fs.list(dir).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn no_ballast_is_no_file() {
        let fs = MemoryFs::new();
        let ballast = Ballast::new(Arc::new(fs.clone()), Path::new("/data"), 0);
        assert!(!ballast.place(0).unwrap());
        assert_eq!(fs.calls(), 0);
    }
}
