/// The youngest positions, scanned by every query. Sorted by item, each item once.
#[derive(Clone, Debug)]
pub(super) struct Buffer<Item> {
    items: Vec<Item>,
    positions: Vec<[f64; 3]>,
}

impl<Item> Default for Buffer<Item> {
    fn default() -> Self {
        Self { items: Vec::new(), positions: Vec::new() }
    }
}

impl<Item: Copy + Ord> Buffer<Item> {
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn get(&self, item: Item) -> Option<[f64; 3]> {
        self.items.binary_search(&item).ok().map(|index| self.positions[index])
    }

    /// Sets the position of an item, whether it was here or not.
    pub(super) fn insert(&mut self, item: Item, position: [f64; 3]) {
        match self.items.binary_search(&item) {
            Ok(index) => self.positions[index] = position,
            Err(index) => {
                self.items.insert(index, item);
                self.positions.insert(index, position);
            }
        }
    }

    /// Removes an item that is here.
    pub(super) fn remove(&mut self, item: Item) {
        if let Ok(index) = self.items.binary_search(&item) {
            self.items.remove(index);
            self.positions.remove(index);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Item, [f64; 3])> + '_ {
        self.items.iter().copied().zip(self.positions.iter().copied())
    }
}
