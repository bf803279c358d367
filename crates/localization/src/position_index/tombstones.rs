use std::sync::Arc;

const WORDS: usize = 64;
const CHUNK: usize = WORDS * 64;

/// Which entries of one immutable tree are dead.
///
/// A bitmap in chunks that are shared between copies: a snapshot copies one pointer per 4,096
/// entries, a writer copies the one chunk it changes. A chunk without a dead entry takes no space.
#[derive(Clone, Debug, Default)]
pub(super) struct Tombstones {
    chunks: Vec<Option<Arc<[u64; WORDS]>>>,
    count: usize,
}

impl Tombstones {
    /// Number of dead entries.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn contains(&self, entry: u32) -> bool {
        if self.count == 0 {
            return false;
        }
        let (chunk, word, bit) = place(entry);
        self.chunks.get(chunk).and_then(Option::as_ref).is_some_and(|words| words[word] & bit != 0)
    }

    /// Marks an entry dead; false if it already was.
    pub(super) fn insert(&mut self, entry: u32) -> bool {
        let (chunk, word, bit) = place(entry);
        if self.chunks.len() <= chunk {
            self.chunks.resize(chunk + 1, None);
        }
        let words = self.chunks[chunk].get_or_insert_with(|| Arc::new([0; WORDS]));
        if words[word] & bit != 0 {
            return false;
        }
        Arc::make_mut(words)[word] |= bit;
        self.count += 1;
        true
    }

    /// Entries that are dead here but were alive in `older`, an earlier copy of the same bitmap.
    pub(super) fn since(&self, older: &Self) -> Vec<u32> {
        let mut entries = Vec::new();
        for (index, chunk) in self.chunks.iter().enumerate() {
            let Some(chunk) = chunk else { continue };
            let before = older.chunks.get(index).and_then(Option::as_ref);
            if before.is_some_and(|before| Arc::ptr_eq(before, chunk)) {
                continue;
            }
            for (word, bits) in chunk.iter().enumerate() {
                let mut new = bits & !before.map_or(0, |before| before[word]);
                while new != 0 {
                    let offset = index * CHUNK + word * 64 + new.trailing_zeros() as usize;
                    // Entries are u32 when they come in, so they are when they go out.
                    entries.extend(u32::try_from(offset));
                    new &= new - 1;
                }
            }
        }
        entries
    }
}

/// Chunk, word and bit of an entry.
fn place(entry: u32) -> (usize, usize, u64) {
    let entry = entry as usize;
    (entry / CHUNK, entry % CHUNK / 64, 1 << (entry % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_later_deaths_and_the_difference_names_them() {
        let mut tombstones = Tombstones::default();
        for entry in [0, 63, 64, 5_000] {
            assert!(tombstones.insert(entry));
        }
        let older = tombstones.clone();
        for entry in [1, 64, 5_001, 100_000] {
            tombstones.insert(entry);
        }

        assert_eq!(tombstones.since(&older), vec![1, 5_001, 100_000]);
        assert_eq!((older.count(), tombstones.count()), (4, 7));
        assert!(!older.contains(1) && !older.contains(100_000));
        assert!(tombstones.contains(1) && tombstones.contains(63) && !tombstones.contains(2));
    }
}
