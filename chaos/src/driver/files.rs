//! Damage to the files of a node that is down.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rand::Rng;

use super::ProcessDriver;
use crate::scenario::DamagedFile;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// So many bits are flipped, anywhere where there is anything.
    BitFlip(usize),
    /// So many bytes are cut off at the end.
    TornTail(u64),
    /// The directory is gone.
    Gone,
}

impl ProcessDriver {
    /// Damages a file of a node that is down. Says what was done, or `None` if it has no such file.
    ///
    /// # Errors
    /// If the node runs, or the disk fails.
    pub fn damage(
        &self,
        name: &str,
        file: DamagedFile,
        damage: Damage,
        rng: &mut impl Rng,
    ) -> anyhow::Result<Option<String>> {
        anyhow::ensure!(self.process(name)?.is_none(), "{name} runs: its files are in use");
        let directory = self.node(name)?.data_dir.join(file.directory());
        if damage == Damage::Gone {
            fs::remove_dir_all(&directory)?;
            return Ok(Some(format!("the directory {} removed", file.directory())));
        }
        let Some(path) = largest_file(&directory)? else { return Ok(None) };
        let what = damage_file(&path, damage, rng)
            .with_context(|| format!("cannot damage {}", path.display()))?;
        let shown = path.strip_prefix(&self.node(name)?.data_dir).unwrap_or(&path);
        Ok(Some(format!("{}: {what}", shown.display())))
    }
}

/// The file below a directory with most bytes in use.
fn largest_file(directory: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mut largest: Option<(u64, PathBuf)> = None;
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                waiting.push(entry.path());
                continue;
            }
            let used = used_bytes(&entry.path())?;
            if 0 < used && largest.as_ref().is_none_or(|(most, _)| *most < used) {
                largest = Some((used, entry.path()));
            }
        }
    }
    Ok(largest.map(|(_, path)| path))
}

/// The length of a file without the zeros at its end: files are allocated ahead.
fn used_bytes(path: &Path) -> anyhow::Result<u64> {
    let bytes = fs::read(path)?;
    let last = bytes.iter().rposition(|byte| *byte != 0);
    Ok(last.map_or(0, |last| last as u64 + 1))
}

fn damage_file(path: &Path, damage: Damage, rng: &mut impl Rng) -> anyhow::Result<String> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let used = used_bytes(path)?;
    match damage {
        Damage::BitFlip(count) => {
            let mut flipped = Vec::new();
            for _ in 0..count {
                let (offset, bit) = (rng.random_range(0..used), rng.random_range(0..8_u32));
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset)?;
                file.write_all_at(&[byte[0] ^ (1 << bit)], offset)?;
                flipped.push(format!("{offset}.{bit}"));
            }
            Ok(format!("bits {} of {used} bytes flipped", flipped.join(", ")))
        }
        Damage::TornTail(bytes) => {
            // What was allocated ahead stays: the tail is what was written, not the file's end.
            let kept = used.saturating_sub(bytes);
            let zeros = vec![0; usize::try_from(used - kept)?];
            file.write_all_at(&zeros, kept)?;
            Ok(format!("the last {} of {used} bytes are gone", used - kept))
        }
        Damage::Gone => anyhow::bail!("a file is damaged, a directory is removed"),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn bits_flip_and_tails_tear_where_there_is_something() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inner");
        fs::create_dir(&path).unwrap();
        fs::write(directory.path().join("small"), [7; 10]).unwrap();
        let path = path.join("large");
        let mut content = vec![0xaa; 1_000];
        content.extend([0; 5_000]);
        fs::write(&path, &content).unwrap();
        assert_eq!(largest_file(directory.path()).unwrap(), Some(path.clone()));
        let mut rng = StdRng::seed_from_u64(1);
        damage_file(&path, Damage::BitFlip(1), &mut rng).unwrap();
        let damaged = fs::read(&path).unwrap();
        let wrong: Vec<usize> = (0..6_000).filter(|at| damaged[*at] != content[*at]).collect();
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0] < 1_000);
        fs::write(&path, &content).unwrap();
        damage_file(&path, Damage::TornTail(100), &mut rng).unwrap();
        assert_eq!(used_bytes(&path).unwrap(), 900);
        assert_eq!(fs::metadata(&path).unwrap().len(), 6_000);
    }
}
