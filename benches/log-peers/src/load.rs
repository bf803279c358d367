//! One closed loop per appender, and what came of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::Failure;

pub const APPENDERS: u64 = 64;
/// The last entries that a group keeps.
pub const KEPT: u64 = 256;
pub const LAGGARD: u64 = APPENDERS;
pub const LAGGARD_ENTRIES: u64 = 20_000;
pub const LAGGARD_BYTES: usize = 1024;

/// Something that keeps entries of many groups.
pub trait Subject: Sync {
    fn name(&self) -> &'static str;

    /// Appends one entry; `done` hears of it once it is durable. Purges what is older than
    /// [`KEPT`].
    fn append(&self, group: u64, index: u64, content: Bytes, done: mpsc::SyncSender<()>);

    /// Bytes on disk now.
    fn disk_bytes(&self) -> u64;

    /// Fills the group that never purges.
    fn add_laggard(&self) {
        let (done, heard) = mpsc::sync_channel(64);
        for index in 0..LAGGARD_ENTRIES {
            self.append(LAGGARD, index, content(LAGGARD, index, LAGGARD_BYTES), done.clone());
            if 63 <= index {
                heard.recv().expect("the subject failed");
            }
        }
        for _ in 0..63 {
            heard.recv().expect("the subject failed");
        }
    }
}

/// What one run came to.
#[derive(Clone, Debug)]
pub struct Row {
    appends_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    amplification: f64,
    disk_megabytes: f64,
    cpu_micros: f64,
}

impl Row {
    pub const HEADER: &'static str = "content  subject               appends/s    p50 ms    p99 ms  amplification   disk MB  CPU us/append";

    pub fn line(&self, subject: &str, length: usize, laggard: bool) -> String {
        let subject = if laggard { format!("{subject}, laggard") } else { subject.to_owned() };
        format!(
            "{length:7}  {subject:20} {:10.0} {:9.2} {:9.2} {:14.3} {:9.0} {:14.1}",
            self.appends_per_second,
            self.p50_ms,
            self.p99_ms,
            self.amplification,
            self.disk_megabytes,
            self.cpu_micros
        )
    }

    /// The median of each column by itself.
    pub fn median(rows: &[Row]) -> Row {
        let of = |column: fn(&Row) -> f64| median(rows.iter().map(column).collect());
        Row {
            appends_per_second: of(|row| row.appends_per_second),
            p50_ms: of(|row| row.p50_ms),
            p99_ms: of(|row| row.p99_ms),
            amplification: of(|row| row.amplification),
            disk_megabytes: of(|row| row.disk_megabytes),
            cpu_micros: of(|row| row.cpu_micros),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median over the rounds of one subject's speed by another's in the same round.
pub fn ratio(rows: &[Row], others: &[Row]) -> f64 {
    let pairs = rows.iter().zip(others);
    median(pairs.map(|(row, other)| row.appends_per_second / other.appends_per_second).collect())
}

/// Runs the appenders for some time.
pub fn run(subject: &dyn Subject, length: usize, time: Duration) -> Result<Row, Failure> {
    let stop = AtomicBool::new(false);
    let (written_before, cpu_before) = (written()?, cpu_micros()?);
    let started = Instant::now();
    let mut waits = Vec::new();
    std::thread::scope(|scope| {
        let appender = |group| {
            let stop = &stop;
            move || {
                let mut waits = Vec::new();
                let (done, heard) = mpsc::sync_channel(1);
                let mut index = 0;
                while !stop.load(Ordering::Relaxed) {
                    let content = content(group, index, length);
                    let asked = Instant::now();
                    subject.append(group, index, content, done.clone());
                    heard.recv().expect("the subject failed");
                    waits.push(asked.elapsed());
                    index += 1;
                }
                waits
            }
        };
        let all: Vec<_> = (0..APPENDERS).map(|group| scope.spawn(appender(group))).collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        for one in all {
            waits.extend(one.join().unwrap_or_default());
        }
    });
    let took = started.elapsed();
    let (written, cpu) = (written()? - written_before, cpu_micros()? - cpu_before);
    waits.sort_unstable();
    let count = waits.len().max(1);
    let at = |percent: usize| {
        waits.get((count * percent / 100).min(count - 1)).map_or(f64::NAN, |w| w.as_secs_f64() * 1e3)
    };
    Ok(Row {
        appends_per_second: count as f64 / took.as_secs_f64(),
        p50_ms: at(50),
        p99_ms: at(99),
        amplification: written as f64 / (count * length) as f64,
        disk_megabytes: subject.disk_bytes() as f64 / 1e6,
        cpu_micros: cpu as f64 / count as f64,
    })
}

/// Content that follows from its place, and that no compression helps.
pub fn content(group: u64, index: u64, length: usize) -> Bytes {
    let mut state = group << 32 ^ index ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Bytes that this process gave to `write` and its like.
fn written() -> Result<u64, Failure> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).ok_or("no wchar")?;
    Ok(line.trim().parse()?)
}

/// Processor time of this process, in microseconds.
fn cpu_micros() -> Result<u64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let behind_name = stat.rsplit_once(')').ok_or("an odd /proc/self/stat")?.1;
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks * 10_000) // A tick is a hundredth of a second on Linux.
}
