//! Opens a store or finds out why it must be discarded.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::layout::RowSum;
use super::marker::{self, Marker};
use super::{Opened, SledConfig, engine, layout, panic_note};
use crate::durable;
use crate::state_store::StateError;

/// Starts that may end inside the engine's open, without a panic, before the state is suspected.
const OPEN_ATTEMPTS_MAX: u32 = 3;

/// How often and in which steps to wait for sled's background threads of a store that was just
/// dropped in this process: they let go of its file a moment later.
const LOCK_ATTEMPTS_MAX: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The files of one store.
#[derive(Debug)]
pub(super) struct Paths {
    /// The directory given by the caller.
    pub(super) dir: PathBuf,
    /// Everything that is discarded together.
    pub(super) current: PathBuf,
    /// sled's own directory.
    pub(super) engine: PathBuf,
    /// The newest completed checkpoint.
    pub(super) marker: PathBuf,
    /// Present while sled opens: the number of starts that tried.
    pub(super) opening: PathBuf,
    /// Present if the state must be discarded: why.
    pub(super) note: Arc<Path>,
}

impl Paths {
    pub(super) fn new(dir: &Path) -> Self {
        let current = dir.join("current");
        Self {
            dir: dir.to_owned(),
            engine: current.join("sled"),
            marker: current.join("checkpoint"),
            opening: current.join("opening"),
            note: current.join("damaged").into(),
            current,
        }
    }
}

/// An opened tree and what was found in it.
pub(super) struct Opening {
    pub(super) db: sled::Db,
    pub(super) tree: sled::Tree,
    /// The newest checkpoint in the tree.
    pub(super) sequence: u64,
    /// The highest chunk id in the tree.
    pub(super) chunk_id_last: Option<u64>,
    /// What all rows come to.
    pub(super) sum: RowSum,
}

/// Why the engine is not open.
enum Refusal {
    /// The state is of no use.
    Discard(String),
    /// The state may be fine; this start must end.
    Stop(StateError),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Stop(StateError::Io(error))
    }
}

/// Takes the directory for this process; the lock lasts as long as the file is open.
pub(super) fn lock(paths: &Paths) -> Result<File, StateError> {
    fs::create_dir_all(&paths.dir).map_err(StateError::Io)?;
    let file = File::create(paths.dir.join("lock")).map_err(StateError::Io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StateError::InUse { path: paths.dir.clone() }),
        Err(TryLockError::Error(error)) => Err(StateError::Io(error)),
    }
}

/// Opens what is there, or starts empty.
pub(super) fn open(paths: &Paths, config: &SledConfig) -> Result<(Opening, Opened), StateError> {
    panic_note::install_hook();
    remove_discarded(&paths.dir).map_err(StateError::Io)?;
    if !paths.current.try_exists().map_err(StateError::Io)? {
        return Ok((create(paths, config)?, Opened::New));
    }
    match open_existing(paths, config) {
        Ok(opening) => {
            let checkpoint = opening.sequence;
            Ok((opening, Opened::Intact { checkpoint }))
        }
        Err(Refusal::Stop(error)) => Err(error),
        Err(Refusal::Discard(reason)) => {
            tracing::warn!(
                path = %paths.dir.display(),
                reason,
                "the node's state is discarded and will be rebuilt"
            );
            discard(paths).map_err(StateError::Io)?;
            Ok((create(paths, config)?, Opened::Discarded { reason }))
        }
    }
}

fn open_existing(paths: &Paths, config: &SledConfig) -> Result<Opening, Refusal> {
    if let Some(note) = durable::read_if_present(&paths.note)? {
        return Err(Refusal::Discard(String::from_utf8_lossy(&note).into_owned()));
    }
    let published = match marker::read(&paths.marker)? {
        Marker::Sequence(sequence) => sequence,
        Marker::Missing => return Err(discard_because("its creation never finished")),
        Marker::Damaged => return Err(discard_because("its checkpoint marker is damaged")),
        Marker::OlderFormat(found) => {
            return Err(Refusal::Discard(format!(
                "it is of format {found}, without a sum of its rows"
            )));
        }
        Marker::UnknownFormat(found) => {
            let known = marker::FORMAT;
            return Err(Refusal::Stop(StateError::UnknownFormat { found, known }));
        }
    };
    let attempts = read_attempts(&paths.opening)?;
    if OPEN_ATTEMPTS_MAX <= attempts {
        let reason = format!("the last {attempts} starts ended while it was being opened");
        return Err(Refusal::Discard(reason));
    }
    fs::write(&paths.opening, (attempts + 1).to_string())?;
    let opened = open_engine(paths, config).and_then(|(db, tree)| {
        let Checked { sequence, chunk_id_last, sum } = check(&tree, &paths.note, published)?;
        Ok(Opening { db, tree, sequence, chunk_id_last, sum })
    });
    durable::remove_if_present(&paths.opening)?;
    opened
}

fn discard_because(reason: &str) -> Refusal {
    Refusal::Discard(reason.to_owned())
}

/// Unfinished opens so far; an unreadable count is one.
fn read_attempts(path: &Path) -> io::Result<u32> {
    let content = durable::read_if_present(path)?;
    Ok(content.map_or(0, |content| String::from_utf8_lossy(&content).trim().parse().unwrap_or(1)))
}

/// What was found in a tree.
struct Checked {
    sequence: u64,
    chunk_id_last: Option<u64>,
    sum: RowSum,
}

/// Compares the tree with the marker and its rows with their sum. sled itself goes on where it finds
/// a hole: rows are then as they once were, each of them sound.
fn check(tree: &sled::Tree, note: &Arc<Path>, published: u64) -> Result<Checked, Refusal> {
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        panic_note::noting(note, || {
            let stored = tree.get(layout::SEQUENCE_KEY).map_err(refusal)?;
            let stored = stored.as_deref().and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            let stored = stored.map_or(0, u64::from_le_bytes);
            if stored < published {
                let reason = format!("it holds checkpoint {stored}, but {published} was completed");
                return Err(Refusal::Discard(reason));
            }
            let discard = |error: StateError| Refusal::Discard(error.to_string());
            let noted = tree.get(layout::SUM_KEY).map_err(refusal)?;
            let noted = layout::RowSum::decode(noted.as_deref()).map_err(discard)?;
            let sum = engine::read_all(tree).map_err(discard)?;
            if sum != noted {
                return Err(discard_because("rows are missing in it, or older than others"));
            }
            let newest = tree.scan_prefix(layout::all_chunks()).next_back();
            let (newest, _) = newest.transpose().map_err(refusal)?.unzip();
            let chunk_id_last =
                newest.map(|key| layout::chunk_id(&key)).transpose().map_err(discard)?;
            Ok(Checked { sequence: stored, chunk_id_last, sum })
        })
    }));
    unwound.unwrap_or_else(|_| Err(discard_because("the engine panicked when it was read")))
}

/// Starts an empty store; durable when it returns.
fn create(paths: &Paths, config: &SledConfig) -> Result<Opening, StateError> {
    fs::create_dir_all(&paths.engine).map_err(StateError::Io)?;
    let (db, tree) = open_engine(paths, config).map_err(|refused| match refused {
        Refusal::Discard(reason) => StateError::Engine { reason },
        Refusal::Stop(error) => error,
    })?;
    db.flush().map_err(|error| StateError::Engine { reason: error.to_string() })?;
    let durable = || {
        File::open(paths.engine.join("db"))?.sync_all()?;
        durable::sync_dir(&paths.engine)?;
        durable::sync_dir(&paths.current)?;
        // The marker comes last: a store without one was never handed out.
        marker::write(&paths.marker, 0)?;
        durable::sync_dir(&paths.dir)
    };
    durable().map_err(StateError::Io)?;
    Ok(Opening { db, tree, sequence: 0, chunk_id_last: None, sum: RowSum::default() })
}

/// Opens sled. In a build that unwinds a panic is caught here; in one that aborts the note is what
/// the next start finds.
fn open_engine(paths: &Paths, config: &SledConfig) -> Result<(sled::Db, sled::Tree), Refusal> {
    let settings = sled::Config::default()
        .path(&paths.engine)
        .cache_capacity(config.cache_bytes_max)
        .flush_every_ms(None);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            panic_note::noting(&paths.note, || {
                let db = settings.open()?;
                let tree = db.open_tree("state")?;
                Ok((db, tree))
            })
        }));
        match unwound {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(error)) if is_lock_held(&error) => {
                if LOCK_ATTEMPTS_MAX <= attempt {
                    let path = paths.dir.clone();
                    return Err(Refusal::Stop(StateError::InUse { path }));
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            Ok(Err(error)) => return Err(refusal(error)),
            Err(_) => {
                let note = durable::read_if_present(&paths.note)?.unwrap_or_default();
                return Err(Refusal::Discard(String::from_utf8_lossy(&note).into_owned()));
            }
        }
    }
}

/// sled has no type for it: the kind is `Other`, as that of a torn segment.
fn is_lock_held(error: &sled::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

/// Tells a damaged state from a fault of its surroundings, which discarding would not heal.
fn refusal(error: sled::Error) -> Refusal {
    match error {
        sled::Error::Io(error) if is_of_surroundings(&error) => {
            Refusal::Stop(StateError::Io(error))
        }
        error @ (sled::Error::Io(_)
        | sled::Error::Corruption { .. }
        | sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_)) => {
            Refusal::Discard(format!("the engine did not open it: {error}"))
        }
    }
}

/// Faults that say nothing about the state.
fn is_of_surroundings(error: &io::Error) -> bool {
    let too_many_files = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    let errno = error.raw_os_error();
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::OutOfMemory
    ) || too_many_files.iter().any(|known| errno == Some(known.raw_os_error()))
}

#[cfg(test)]
pub(super) fn is_kept(error: sled::Error) -> bool {
    matches!(refusal(error), Refusal::Stop(_))
}

/// Moves the state aside in one step, then deletes it.
pub(super) fn discard(paths: &Paths) -> io::Result<()> {
    let aside = (0u32..)
        .map(|number| paths.dir.join(format!("discarded-{number}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| paths.dir.join("discarded"));
    fs::rename(&paths.current, aside)?;
    durable::sync_dir(&paths.dir)?;
    remove_discarded(&paths.dir)
}

/// Deletes what earlier starts moved aside.
fn remove_discarded(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("discarded") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
