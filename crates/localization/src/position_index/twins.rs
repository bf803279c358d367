/// Marks a leaf that stands for a group of entries rather than for one.
const GROUP: u32 = 1 << 31;

/// Entries of one tree that lie on exactly the same coordinate.
///
/// A *leaf* is what the k-d tree stores: an entry that is alone at its coordinate, or [`GROUP`]
/// plus the number of a group. Nothing is stored for entries that are alone.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// Group g is `entries[starts[g]..starts[g + 1]]`.
    starts: Vec<u32>,
    entries: Vec<u32>,
}

/// What the k-d tree is to hold: leaves and their coordinates.
pub(super) type Leaves = Vec<(u32, [f64; 3])>;

impl Twins {
    /// Finds the entries with equal coordinates. The leaves are `None` if there are none, and
    /// each entry is its own leaf.
    ///
    /// # Panics
    /// From 2^31 positions on, and if a position is NaN.
    pub(super) fn find(positions: &[[f64; 3]]) -> (Self, Option<Leaves>) {
        assert!(positions.len() < GROUP as usize, "a tree holds fewer than 2^31 points");
        // Comparing hashes first keeps the common case, no twins at all, to one sort of integers.
        let hashes = positions.iter().map(|position| hash(*position));
        let mut order: Vec<(u64, u32)> = hashes.zip(0..).collect();
        order.sort_unstable();
        let mut twins = Self::default();
        for run in order.chunk_by_mut(|a, b| a.0 == b.0).filter(|run| 1 < run.len()) {
            let at = |slot: &(u64, u32)| positions[slot.1 as usize].map(f64::to_bits);
            run.sort_unstable_by_key(|slot| (at(slot), slot.1));
            for group in run.chunk_by(|a, b| at(a) == at(b)).filter(|group| 1 < group.len()) {
                twins.push_group(group.iter().map(|slot| slot.1));
            }
        }
        if twins.entries.is_empty() {
            return (twins, None);
        }
        let leaves = twins.leaves(positions);
        (twins, Some(leaves))
    }

    /// Entries at the coordinate of a leaf, ascending.
    pub(super) fn entries_at(&self, leaf: u32) -> impl Iterator<Item = u32> + '_ {
        let group = if leaf & GROUP == 0 { &[][..] } else { self.group(leaf & !GROUP) };
        let alone = (leaf & GROUP == 0).then_some(leaf);
        alone.into_iter().chain(group.iter().copied())
    }

    fn group(&self, number: u32) -> &[u32] {
        let start = self.starts[number as usize] as usize;
        let end = self.starts.get(number as usize + 1).map_or(self.entries.len(), |s| *s as usize);
        &self.entries[start..end]
    }

    fn push_group(&mut self, entries: impl Iterator<Item = u32>) {
        // Bounded by the number of positions, which find() has checked.
        self.starts.extend(u32::try_from(self.entries.len()));
        self.entries.extend(entries);
    }

    fn leaves(&self, positions: &[[f64; 3]]) -> Leaves {
        let mut alone = vec![true; positions.len()];
        for entry in &self.entries {
            alone[*entry as usize] = false;
        }
        let singles = (0..).zip(&alone).filter(|(_, alone)| **alone).map(|(entry, _)| entry);
        let groups = (0..).zip(&self.starts).map(|(number, start)| {
            (GROUP | number, positions[self.entries[*start as usize] as usize])
        });
        singles.map(|entry: u32| (entry, positions[entry as usize])).chain(groups).collect()
    }
}

/// A fixed mix of the three coordinates. Equal coordinates have equal hashes; the reverse is
/// checked, so collisions cost time and nothing else.
fn hash(position: [f64; 3]) -> u64 {
    position.iter().fold(0, |hash: u64, coordinate| {
        let mixed = (hash ^ coordinate.to_bits()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^ mixed >> 29
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_coordinates_share_a_leaf_and_the_others_stand_alone() {
        let [a, b, c] = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.5], [3.0, 2.0, 1.0]];
        let (twins, leaves) = Twins::find(&[a, b, a, c, b, a]);
        let mut found: Vec<_> = leaves
            .unwrap()
            .into_iter()
            .map(|(leaf, position)| (twins.entries_at(leaf).collect::<Vec<_>>(), position))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));

        assert_eq!(found, vec![(vec![0, 2, 5], a), (vec![1, 4], b), (vec![3], c)]);
    }

    #[test]
    fn without_twins_each_entry_is_its_own_leaf() {
        let (twins, leaves) = Twins::find(&[[0.0; 3], [1.0; 3]]);

        assert!(leaves.is_none());
        assert_eq!(twins.entries_at(1).collect::<Vec<_>>(), vec![1]);
    }
}
