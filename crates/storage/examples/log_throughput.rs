//! Measures the shared log against a bare file with fdatasync, in one run.
//!
//! `cargo run --release -p anchorhold-storage --example log_throughput -- [directory] [seconds]`
//!
//! 64 appenders in 64 groups, each with one append under way, content of 256 bytes and of 4 KiB.
//! The bare file gets the same batches from the same kind of queue, without groups, checksums or
//! an index. Each group purges all but its last 256 entries, as a node does.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use anchorhold_storage::fs::RealFs;
use anchorhold_storage::{
    GroupId, LogConfig, LogEntry, LogPosition, LogStore, LogWrite, SegmentedLog,
};
use bytes::Bytes;

const APPENDERS: u64 = 64;
const KEPT: u64 = 256;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds: u64 = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let root = root.join(format!("log-throughput-{}", std::process::id()));
    std::fs::create_dir_all(&root)?;
    println!(
        "content  subject     appends/s    p50 ms    p99 ms  appends/fsync  bytes written/given"
    );
    for round in 0..3 {
        for length in [256, 4096] {
            bare_file(&root.join(format!("file-{round}")), length, Duration::from_secs(seconds))?;
            let dir = root.join(format!("log-{round}-{length}"));
            shared_log(&dir, length, Duration::from_secs(seconds))?;
            std::fs::remove_dir_all(dir)?;
        }
    }
    std::fs::remove_dir_all(root)?;
    Ok(())
}

/// Runs one closed loop per appender and prints what came of it. `append` returns once the
/// content is durable.
#[expect(clippy::disallowed_methods, reason = "a measurement needs the clock")]
fn run(
    subject: &str,
    length: usize,
    time: Duration,
    append: impl Fn(u64, u64, Bytes) + Sync,
    figures: impl FnOnce() -> (u64, f64),
) {
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let mut waits = Vec::new();
    std::thread::scope(|scope| {
        let appender = |appender| {
            let (stop, append) = (&stop, &append);
            move || {
                let mut waits = Vec::new();
                let mut index = 0;
                while !stop.load(Ordering::Relaxed) {
                    let content = content(appender, index, length);
                    let asked = Instant::now();
                    append(appender, index, content);
                    waits.push(asked.elapsed());
                    index += 1;
                }
                waits
            }
        };
        let all: Vec<_> = (0..APPENDERS).map(|number| scope.spawn(appender(number))).collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        for one in all {
            waits.extend(one.join().unwrap_or_default());
        }
    });
    let took = started.elapsed();
    waits.sort_unstable();
    let at =
        |share: usize| waits[(waits.len() * share / 100).min(waits.len() - 1)].as_secs_f64() * 1e3;
    let count = u32::try_from(waits.len()).unwrap_or(u32::MAX);
    let (fsyncs, amplification) = figures();
    let fsyncs = u32::try_from(fsyncs.max(1)).unwrap_or(u32::MAX);
    println!(
        "{length:7}  {subject:10} {:10.0} {:9.2} {:9.2} {:14.1} {amplification:20.3}",
        f64::from(count) / took.as_secs_f64(),
        at(50),
        at(99),
        f64::from(count) / f64::from(fsyncs),
    );
}

fn content(appender: u64, index: u64, length: usize) -> Bytes {
    let mut state = appender << 32 ^ index ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

fn shared_log(dir: &Path, length: usize, time: Duration) -> Result<(), Failure> {
    let log = SegmentedLog::open(Arc::new(RealFs), dir, LogConfig::default())?;
    let append = |appender: u64, index: u64, content: Bytes| {
        let group = GroupId { shard: appender, incarnation: 1 };
        let position = LogPosition { term: 1, index };
        let entries = vec![LogEntry { position, content }];
        let (sender, receiver) = mpsc::sync_channel(1);
        let done = Box::new(move |outcome| {
            let _: Result<_, _> = sender.send(outcome);
        });
        log.submit(LogWrite::Append { group, entries }, done);
        if index % KEPT == KEPT - 1 && KEPT < index {
            let up_to = LogPosition { term: 1, index: index - KEPT };
            log.submit(LogWrite::Purge { group, up_to }, Box::new(|_| ()));
        }
        assert!(matches!(receiver.recv(), Ok(Ok(()))), "the log failed");
    };
    run("shared log", length, time, append, || {
        let stats = log.stats();
        let megabytes = |bytes: u64| f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX));
        (stats.fsyncs, megabytes(stats.bytes_written) / megabytes(stats.bytes_given))
    });
    Ok(())
}

/// Content, and who waits for it.
type Waiting = (Bytes, mpsc::SyncSender<()>);

/// The yardstick: one file, one writer, group commit, nothing else.
#[derive(Default)]
struct BareFile {
    queue: Mutex<(Vec<Waiting>, bool)>,
    work: Condvar,
}

fn bare_file(path: &Path, length: usize, time: Duration) -> Result<(), Failure> {
    let bare = Arc::new(BareFile::default());
    let mut file = File::create(path)?;
    let shared = Arc::clone(&bare);
    let writer = std::thread::spawn(move || -> Result<u64, Failure> {
        let mut fsyncs = 0;
        let mut buffer = Vec::new();
        loop {
            let mut queue = shared.queue.lock().map_err(|_| "poisoned")?;
            while queue.0.is_empty() && !queue.1 {
                queue = shared.work.wait(queue).map_err(|_| "poisoned")?;
            }
            let batch = std::mem::take(&mut queue.0);
            drop(queue);
            if batch.is_empty() {
                return Ok(fsyncs);
            }
            buffer.clear();
            batch.iter().for_each(|(content, _)| buffer.extend_from_slice(content));
            file.write_all(&buffer)?;
            file.sync_data()?;
            fsyncs += 1;
            for (_, sender) in batch {
                sender.send(())?;
            }
        }
    });
    let append = |_: u64, _: u64, content: Bytes| {
        let (sender, receiver) = mpsc::sync_channel(1);
        if let Ok(mut queue) = bare.queue.lock() {
            queue.0.push((content, sender));
        }
        bare.work.notify_one();
        assert!(receiver.recv().is_ok(), "the file failed");
    };
    run("bare file", length, time, append, || {
        if let Ok(mut queue) = bare.queue.lock() {
            queue.1 = true;
        }
        bare.work.notify_one();
        (writer.join().ok().and_then(Result::ok).unwrap_or(0), 1.0)
    });
    std::fs::remove_file(path)?;
    Ok(())
}
