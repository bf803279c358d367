//! The three that are compared.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anchorhold_storage::fs::RealFs;
use anchorhold_storage::{
    GroupId, LogConfig, LogEntry, LogPosition, LogStore, LogWrite, SegmentedLog,
};
use bytes::Bytes;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::Failure;
use crate::load::{KEPT, LAGGARD, Subject};

pub const NAMES: [&str; 3] = ["bare file", "shared log", "raft-engine"];

/// Both logs turn over at this size, so that a laggard meets it within a run.
const DISK_BYTES_TARGET: u64 = 256 << 20;
const SEGMENT_BYTES: u64 = 16 << 20;

/// One append that waits for a committer.
struct Waiting {
    group: u64,
    index: u64,
    content: Bytes,
    done: mpsc::SyncSender<()>,
}

/// Whether a group purges after this entry, and up to where.
fn purge_after(group: u64, index: u64) -> Option<u64> {
    let due = group != LAGGARD && index % KEPT == KEPT - 1 && KEPT < index;
    due.then(|| index - KEPT)
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<(Vec<Waiting>, bool)>,
    work: Condvar,
}

/// One thread that drains everybody who waits into one batch, makes it durable, and tells them.
pub struct Committer {
    name: &'static str,
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
    disk_bytes: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Committer {
    fn new(
        name: &'static str,
        mut commit: impl FnMut(&mut Vec<Waiting>) -> Result<(), Failure> + Send + 'static,
        disk_bytes: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        let queue = Arc::new(Queue::default());
        let thread = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                loop {
                    let mut waiting = queue.waiting.lock().expect("nobody panics with the queue");
                    while waiting.0.is_empty() && !waiting.1 {
                        waiting = queue.work.wait(waiting).expect("nobody panics with the queue");
                    }
                    let mut batch = std::mem::take(&mut waiting.0);
                    drop(waiting);
                    if batch.is_empty() {
                        return;
                    }
                    if let Err(error) = commit(&mut batch) {
                        eprintln!("{error}");
                        return; // Whoever waits hears that the channel is closed.
                    }
                    for one in batch {
                        let _: Result<_, _> = one.done.send(());
                    }
                }
            }
        });
        Self { name, queue, thread: Some(thread), disk_bytes: Box::new(disk_bytes) }
    }
}

impl Subject for Committer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn append(&self, group: u64, index: u64, content: Bytes, done: mpsc::SyncSender<()>) {
        let mut waiting = self.queue.waiting.lock().expect("nobody panics with the queue");
        waiting.0.push(Waiting { group, index, content, done });
        drop(waiting);
        self.queue.work.notify_one();
    }

    fn disk_bytes(&self) -> u64 {
        (self.disk_bytes)()
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        if let Ok(mut waiting) = self.queue.waiting.lock() {
            waiting.1 = true;
        }
        self.queue.work.notify_one();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The yardstick: one file, one writer, group commit, nothing else.
pub fn bare(dir: &Path) -> Result<Committer, Failure> {
    let mut file = File::create(dir.join("file"))?;
    let written = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&written);
    let mut buffer = Vec::new();
    let commit = move |batch: &mut Vec<Waiting>| {
        buffer.clear();
        batch.iter().for_each(|one| buffer.extend_from_slice(&one.content));
        file.write_all(&buffer)?;
        file.sync_data()?;
        counted.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(())
    };
    Ok(Committer::new(NAMES[0], commit, move || written.load(Ordering::Relaxed)))
}

/// raft-engine's entries are messages of protobuf. The index stands in front of the content.
#[derive(Clone)]
struct Indexed;

impl MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        entry.get_value().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    }
}

/// How often raft-engine's old files are looked for. TiKV does it every ten seconds.
const PURGE_INTERVAL: Duration = Duration::from_millis(500);

pub fn raft_engine(dir: &Path) -> Result<Committer, Failure> {
    let config = Config {
        dir: dir.join("engine").to_string_lossy().into_owned(),
        target_file_size: ReadableSize(SEGMENT_BYTES),
        purge_threshold: ReadableSize(DISK_BYTES_TARGET),
        // The content cannot be compressed: trying only costs.
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    };
    let engine = Arc::new(Engine::open(config)?);
    let (purged, used) = (Arc::clone(&engine), Arc::clone(&engine));
    let stop = Arc::new(AtomicBool::new(false));
    let purger = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = purged.purge_expired_files() {
                    eprintln!("purge: {error}");
                }
                std::thread::park_timeout(PURGE_INTERVAL);
            }
        }
    });
    let purger = Purger { stop, thread: Some(purger) };
    let mut batch = LogBatch::default();
    let commit = move |waiting: &mut Vec<Waiting>| {
        let _purger = &purger;
        for one in waiting.iter() {
            let mut value = Vec::with_capacity(8 + one.content.len());
            value.extend_from_slice(&one.index.to_le_bytes());
            value.extend_from_slice(&one.content);
            let mut entry = BytesValue::new();
            entry.set_value(value);
            // A group of raft-engine has no number 0.
            batch.add_entries::<Indexed>(one.group + 1, &[entry])?;
            if let Some(index) = purge_after(one.group, one.index) {
                batch.add_command(one.group + 1, Command::Compact { index });
            }
        }
        engine.write(&mut batch, true)?;
        Ok(())
    };
    Ok(Committer::new(NAMES[2], commit, move || used.get_used_size() as u64))
}

/// Ends with the engine's committer.
struct Purger {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Purger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}

/// The shared log of this repository, with its own writer.
pub struct Ours {
    log: SegmentedLog,
}

pub fn ours(dir: &Path) -> Result<Ours, Failure> {
    let config = LogConfig {
        segment_bytes: SEGMENT_BYTES,
        disk_bytes_target: DISK_BYTES_TARGET,
        ..LogConfig::default()
    };
    Ok(Ours { log: SegmentedLog::open(Arc::new(RealFs), dir, config)? })
}

impl Subject for Ours {
    fn name(&self) -> &'static str {
        NAMES[1]
    }

    fn append(&self, group: u64, index: u64, content: Bytes, done: mpsc::SyncSender<()>) {
        let id = GroupId { shard: group, incarnation: 1 };
        let entries = vec![LogEntry { position: LogPosition { term: 1, index }, content }];
        let completion = Box::new(move |outcome: Result<(), _>| {
            if outcome.is_ok() {
                let _: Result<_, _> = done.send(());
            }
        });
        self.log.submit(LogWrite::Append { group: id, entries }, completion);
        if let Some(index) = purge_after(group, index) {
            let up_to = LogPosition { term: 1, index };
            self.log.submit(LogWrite::Purge { group: id, up_to }, Box::new(|_| ()));
        }
    }

    fn disk_bytes(&self) -> u64 {
        self.log.stats().disk_bytes
    }
}
