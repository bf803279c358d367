//! The shared log beside a bare file with fdatasync and beside raft-engine, in one interleaved run.
//!
//! `cargo run --release -- [--dir DIRECTORY] [--seconds 4] [--rounds 5]`
//!
//! 64 appenders in 64 groups, each with one append under way, contents of 256 bytes and of 4 KiB
//! that no compression helps. Each group purges all but its last 256 entries, as a node does. Then
//! the same with a 65th group that holds 20,000 entries of 1 KiB and never purges.
//!
//! The bare file and raft-engine are written by one committer thread that drains all who wait, one
//! batch and one sync at a time; the shared log has such a thread of its own. *Amplification* is
//! what the process gave to `write` and its like during the row, for each byte of content.

mod load;
mod subjects;

use std::path::PathBuf;
use std::time::Duration;

use load::{Row, Subject};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    dir: PathBuf,
    seconds: u64,
    rounds: usize,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options { dir: std::env::temp_dir(), seconds: 4, rounds: 5 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or("each option takes a value")?;
        match name.as_str() {
            "--dir" => options.dir = value.into(),
            "--seconds" => options.seconds = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            _ => return Err(format!("{name}: --dir, --seconds and --rounds are known").into()),
        }
    }
    Ok(options)
}

/// What one table row repeats.
struct Setting {
    length: usize,
    laggard: bool,
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let root = options.dir.join(format!("log-peers-{}", std::process::id()));
    std::fs::create_dir_all(&root)?;
    let ran = run(&root, &options);
    std::fs::remove_dir_all(root)?;
    ran
}

fn run(root: &std::path::Path, options: &Options) -> Result<(), Failure> {
    let settings = [
        Setting { length: 256, laggard: false },
        Setting { length: 4096, laggard: false },
        Setting { length: 4096, laggard: true },
    ];
    let time = Duration::from_secs(options.seconds);
    let mut rows: Vec<Vec<Vec<Row>>> = settings.iter().map(|_| vec![vec![]; 3]).collect();
    println!("{}", Row::HEADER);
    for round in 0..options.rounds {
        for (setting, found) in settings.iter().zip(&mut rows) {
            // A laggard's entries are copied once the log has been written round: it takes longer.
            let time = if setting.laggard { time * 3 } else { time };
            for number in 0..3 {
                // Each is first, second and last in turn.
                let number = (number + round) % 3;
                let dir = root.join(format!("{round}-{number}"));
                std::fs::create_dir_all(&dir)?;
                let subject: Box<dyn Subject> = match number {
                    0 => Box::new(subjects::bare(&dir)?),
                    1 => Box::new(subjects::ours(&dir)?),
                    _ => Box::new(subjects::raft_engine(&dir)?),
                };
                if setting.laggard {
                    subject.add_laggard();
                }
                let row = load::run(&*subject, setting.length, time)?;
                println!("{}", row.line(subject.name(), setting.length, setting.laggard));
                drop(subject);
                std::fs::remove_dir_all(&dir)?;
                found[number].push(row);
            }
        }
    }
    println!("\nmedians of {} rounds", options.rounds);
    println!("{}", Row::HEADER);
    for (setting, found) in settings.iter().zip(&rows) {
        for (name, rows) in subjects::NAMES.iter().zip(found) {
            println!("{}", Row::median(rows).line(name, setting.length, setting.laggard));
        }
        let [file, ours, raft_engine] = &found[..] else { return Err("three subjects".into()) };
        println!(
            "         shared log / bare file {:.2}, raft-engine / bare file {:.2} (medians of each round's ratio)",
            load::ratio(ours, file),
            load::ratio(raft_engine, file)
        );
    }
    Ok(())
}
