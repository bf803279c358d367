//! What the writer does beside writing: prepares the next segment, switches to it, copies live
//! entries out of the oldest one, and removes what nothing points to.

use std::io;
use std::sync::Arc;

use super::super::frame::{ENTRY_OVERHEAD_BYTES, FRAME_OVERHEAD_BYTES, SMALL_RECORD_BYTES};
use super::super::queue::State;
use super::super::read::read_entry;
use super::super::segment::{SEGMENT_HEADER_BYTES, SPARE_NAME, Segment, header, path_of};
use super::super::tidy::{self, Spare};
use super::{Batch, Copied, Current, Prepared, Writer};
use crate::log_store::{GroupId, LogEntry, LogPosition};

/// A record that names the oldest segment, in a frame of its own.
const OLDEST_BYTES: u64 = FRAME_OVERHEAD_BYTES + 11;
/// Frames of a segment, at least, if it may be longer: a turn takes four fsyncs more than a frame,
/// and then fewer than one in a hundred.
const FRAMES_MIN: u64 = 512;
/// Slots looked at per batch while searching for entries to copy.
const SCAN_SLOTS_MAX: usize = 16 * 1024;

/// How far the oldest segment has been searched for live entries.
#[derive(Debug, Default)]
pub(in super::super) struct Cursor {
    /// The segment that is being emptied.
    victim: u64,
    /// The next entry to look at; `None` if all have been looked at.
    next: Option<(GroupId, u64)>,
}

impl Writer {
    /// Whether there is something to do that no caller waits for.
    pub(super) fn has_upkeep(&self) -> bool {
        if 0 < self.notes_left {
            return false;
        }
        self.can_remove()
            || self.must_turn && self.prepared.is_some()
            || self.copy_is_due() && (self.can_copy() || self.turns_for_upkeep())
    }

    /// Whether the next batch frees a segment.
    fn can_remove(&self) -> bool {
        self.oldest < self.written.uses.oldest_needed()
            && OLDEST_BYTES <= self.current.free()
            && !self.must_turn
    }

    /// Whether upkeep alone is reason enough to switch to the next segment.
    pub(super) fn turns_for_upkeep(&self) -> bool {
        let Some(next) = &self.prepared else { return false };
        let opening = self.shared.state.lock().room.opening();
        self.copy_is_due()
            && !self.can_copy()
            && self.copy_room() + self.reserve() + opening <= next.free()
    }

    fn can_copy(&self) -> bool {
        self.copy_room() + self.reserve() <= self.current.free()
    }

    /// Room that is taken while copies are chosen: enough for one large entry.
    fn copy_room(&self) -> u64 {
        self.config.segment_bytes / 4
    }

    /// Whether live entries keep the log above its target, and copying them would help: it would
    /// not if most of the log were live.
    fn copy_is_due(&self) -> bool {
        let uses = &self.written.uses;
        let Some(oldest) = uses.oldest() else { return false };
        let exhausted = self.copying.victim == oldest.segment.number && self.copying.next.is_none();
        let disk_bytes = uses.disk_bytes();
        1 < uses.len()
            && !exhausted
            && oldest.live_entries != 0
            && self.config.disk_bytes_target < disk_bytes
            && uses.live_bytes() < disk_bytes / 4 * 3
    }

    /// Takes room in the current segment for upkeep, unless the callers need it.
    pub(super) fn take_room(&self, bytes: u64) -> bool {
        let mut state = self.shared.state.lock();
        let left = state.room.current.saturating_sub(bytes);
        let fits = bytes <= state.room.current
            && state.queued_bytes <= left.max(state.room.prepared_free());
        if fits {
            state.room.current = left;
        }
        fits
    }

    /// Puts into the batch what is due: the number of the oldest segment, and copies.
    pub(super) fn plan_upkeep(&mut self, needed: u64, batch: &mut Batch) {
        if 0 < self.notes_left {
            return;
        }
        let oldest = self.written.uses.oldest_needed();
        if self.oldest < oldest
            && !self.must_turn
            && needed + self.frame.length() + OLDEST_BYTES <= self.current.free()
            && self.take_room(OLDEST_BYTES)
        {
            self.frame.oldest(oldest);
            batch.oldest = Some(oldest);
        }
        if !self.copy_is_due() {
            return;
        }
        let free = self.current.free().saturating_sub(self.frame.length());
        if needed + self.copy_room() + self.reserve() <= free && self.take_room(self.copy_room()) {
            batch.copies = self.plan_copies();
            for copied in &mut batch.copies {
                let position = copied.position();
                self.frame.copy(copied.group, position.index, 1);
                copied.at = self.frame.entry(copied.group, position, &copied.entry.content);
            }
        }
    }

    fn reserve(&self) -> u64 {
        self.config.segment_bytes / 16
    }

    /// Live entries of the oldest segment, in order, as many as fit into one batch.
    fn plan_copies(&mut self) -> Vec<Copied> {
        let Some(oldest) = self.written.uses.oldest() else { return vec![] };
        let victim = oldest.segment.number;
        if self.copying.victim != victim {
            let next = self.written.groups.keys().next().map(|group| (*group, 0));
            self.copying = Cursor { victim, next };
        }
        let mut copies = Vec::new();
        let mut bytes = 0;
        let mut slots_left = SCAN_SLOTS_MAX;
        while let Some((group, from)) = self.copying.next {
            let Some((index, length)) = self.next_in(victim, group, from, &mut slots_left) else {
                if slots_left == 0 {
                    break;
                }
                let after = self.written.groups.range(group..).find(|(other, _)| **other != group);
                self.copying.next = after.map(|(other, _)| (*other, 0));
                continue;
            };
            let cost = u64::from(length) + SMALL_RECORD_BYTES + ENTRY_OVERHEAD_BYTES;
            if self.config.copy_bytes_max < bytes + cost && !copies.is_empty() {
                break;
            }
            if self.copy_room() < cost + FRAME_OVERHEAD_BYTES {
                // It keeps its segment alive. Its group's next purge frees both.
                self.copying.next = Some((group, index + 1));
                continue;
            }
            bytes += cost;
            self.copying.next = Some((group, index + 1));
            copies.extend(self.fetch(victim, group, index));
        }
        copies
    }

    /// The next entry of a group, at or after an index, that is in a segment.
    fn next_in(
        &mut self,
        victim: u64,
        group: GroupId,
        from: u64,
        slots_left: &mut usize,
    ) -> Option<(u64, u32)> {
        let state = self.written.groups.get(&group)?;
        let skipped = usize::try_from(from.saturating_sub(state.first)).unwrap_or(usize::MAX);
        let skipped = skipped.min(state.slots.len());
        for (index, home) in (state.first + skipped as u64..).zip(state.slots.range(skipped..)) {
            if *slots_left == 0 {
                self.copying.next = Some((group, index));
                return None;
            }
            *slots_left -= 1;
            if home.segment == victim {
                return Some((index, home.length));
            }
        }
        None
    }

    /// Reads an entry that is to be copied. `None` if readers no longer see it there: then the
    /// change that removes it is in the queue. `None` too if it is damaged: it stays where it is,
    /// with its segment, so that its reader learns of the damage and not of a missing entry, until its
    /// group purges it ([`crate::LogStore::damaged_groups`]).
    fn fetch(&self, victim: u64, group: GroupId, index: u64) -> Option<Copied> {
        let state = self.shared.state.lock();
        let slot = state.index.groups.get(&group)?.slot(index)?;
        let segment = slot.segment.as_ref().filter(|segment| segment.number == victim)?;
        let (segment, offset, length) = (Arc::clone(segment), slot.offset, slot.length);
        let position = LogPosition { term: slot.term, index };
        let content = slot.content.clone();
        drop(state);
        let content = match content {
            Some(content) => content,
            None => match read_entry(group, position, &segment, offset, length) {
                Ok(content) => content,
                Err(error) => {
                    tracing::error!(%error, ?group, index, "an entry cannot be copied forward");
                    // An unreadable sector pins the log as a rotten one does.
                    self.shared.note_damage(group, index);
                    return None;
                }
            },
        };
        Some(Copied::new(group, LogEntry { position, content }, (victim, offset), 0))
    }

    /// Seals the current segment and goes on in the prepared one, whose opening is yet to come.
    pub(super) fn turn_over(&mut self) -> io::Result<()> {
        let Some(next) = self.prepared.take() else {
            return Err(io::Error::other("no segment is prepared"));
        };
        if !self.current.sealed {
            self.frame.begin();
            self.frame.seal(next.segment.number);
            self.offsets.clear();
            self.write_frame()?;
            self.echo.clear();
            self.shared.state.lock().stats.fsyncs += 1;
        }
        self.written.uses.push(Arc::clone(&next.segment), next.length);
        self.current = Current {
            segment: next.segment,
            length: next.length,
            offset: SEGMENT_HEADER_BYTES,
            sealed: false,
            began_at: SEGMENT_HEADER_BYTES,
            frames: 0,
        };
        self.must_turn = false;
        Ok(())
    }

    /// Prepares the next segment in good time, or makes it larger for a change that needs it.
    pub(in super::super) fn prepare_ahead(&mut self) -> io::Result<()> {
        let room = self.shared.state.lock().room;
        let free = self.current.free().max(room.prepared_free());
        let half_full = self.current.free() < self.current.length / 2;
        let due = half_full || free < room.wanted || self.must_turn;
        let made = if self.prepared.is_none() && due {
            self.make_next(room.wanted + room.opening())
        } else if let Some(next) = &self.prepared
            && (free < room.wanted || next.free() < 2 * room.opening())
        {
            let (segment, length) = (Arc::clone(&next.segment), next.length);
            self.lengthen(segment, length, room.wanted + 2 * room.opening())
        } else {
            Ok(())
        };
        let was_short = std::mem::replace(&mut self.short_of_space, made.is_err());
        let mut state = self.shared.state.lock();
        if let Err(error) = made {
            if !is_no_space(&error) {
                return Err(error);
            }
            if self.can_remove() {
                return Ok(()); // Whoever waits goes on waiting: space is about to be freed.
            }
            if !was_short {
                tracing::warn!(%error, dir = %self.dir.display(), "no space for the next segment");
            }
            state.room.failures += 1;
        }
        state.room.wanted = 0;
        self.show_room(&mut state);
        drop(state);
        self.shared.room.notify_all();
        Ok(())
    }

    fn make_next(&mut self, wanted: u64) -> io::Result<()> {
        let least = wanted + self.reserve() + SEGMENT_HEADER_BYTES + super::SEAL_BYTES;
        let plain = self.config.segment_bytes.max(least.next_multiple_of(4096));
        let paced = self.paced_length();
        if plain < paced {
            match self.make(paced) {
                Err(error) if is_no_space(&error) => {}
                made => return made,
            }
        }
        self.make(plain)
    }

    /// How long the next segment should be, by the frames that this one takes: twice as long if they
    /// are few, half as long if they are very many.
    fn paced_length(&self) -> u64 {
        let Current { length, offset, began_at, frames, .. } = self.current;
        let config = &self.config;
        let bytes = offset.saturating_sub(began_at);
        if bytes < length / 4 {
            return config.segment_bytes; // Too little to tell: made early, for one large change.
        }
        let paced = match frames.saturating_mul(length) / bytes {
            frames if frames < FRAMES_MIN => length.saturating_mul(2),
            frames if 4 * FRAMES_MIN < frames => (length / 2).next_multiple_of(4096),
            _ => length,
        };
        paced.clamp(config.segment_bytes, config.segment_bytes_max)
    }

    fn make(&mut self, length: u64) -> io::Result<()> {
        let number = self.number_next;
        let spare = self.spare.take_if(|spare| spare.length == length);
        if spare.is_none() {
            self.drop_spare()?;
        }
        let made = self.within_bound(length).and_then(|()| match spare {
            Some(spare) => tidy::recycle(&*self.fs, &self.dir, self.log_id, number, spare),
            None => tidy::prepare(&*self.fs, &self.dir, self.log_id, number, length),
        });
        match made {
            Ok(file) => {
                let segment = Arc::new(Segment { number, file });
                self.number_next += 1;
                self.prepared = Some(Prepared { segment, length });
                Ok(())
            }
            Err(error) if is_no_space(&error) => {
                tidy::remove_failed(&*self.fs, &self.dir, number)?;
                tidy::remove_if_there(&*self.fs, &self.dir.join(SPARE_NAME))?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the space of what cannot be used back.
    fn drop_spare(&mut self) -> io::Result<()> {
        match self.spare.take() {
            Some(_) => tidy::remove_if_there(&*self.fs, &self.dir.join(SPARE_NAME)),
            None => Ok(()),
        }
    }

    fn lengthen(&mut self, segment: Arc<Segment>, length: u64, wanted: u64) -> io::Result<()> {
        let least = wanted + self.reserve() + SEGMENT_HEADER_BYTES + super::SEAL_BYTES;
        let longer = least.next_multiple_of(4096);
        if longer <= length {
            return Ok(());
        }
        self.drop_spare()?;
        self.within_bound(longer - length)?;
        segment.file.allocate(longer)?;
        // The file first: a header that is durable never promises a length that is not.
        segment.file.sync_data()?;
        segment.file.write_at(&header(self.log_id, segment.number, longer), 0)?;
        segment.file.sync_data()?;
        self.prepared = Some(Prepared { segment, length: longer });
        Ok(())
    }

    fn within_bound(&self, more: u64) -> io::Result<()> {
        let next = self.prepared.as_ref().map_or(0, |next| next.length);
        if self.config.disk_bytes_max < self.written.uses.disk_bytes() + next + more {
            let reason = "the log has reached its bound";
            return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
        }
        Ok(())
    }

    /// Removes the segments before `oldest`, which the disk now says is the oldest.
    pub(super) fn remove_below(&mut self, oldest: u64) -> io::Result<()> {
        self.oldest = oldest;
        let mut removed = false;
        while let Some(found) = self.written.uses.oldest()
            && found.segment.number < oldest
        {
            let path = path_of(&self.dir, found.segment.number);
            let gone = self.written.uses.pop_oldest();
            // Whoever still reads it goes on reading it: only a file of nobody is written again.
            let unread = gone.and_then(|gone| Some((Arc::into_inner(gone.segment)?, gone.length)));
            match unread {
                // Segments grow and shrink: what was as long as the current one is likely to be
                // wanted again.
                Some((segment, length))
                    if self.spare.is_none()
                        && self.number_own <= segment.number
                        && length == self.current.length
                        && !self.short_of_space =>
                {
                    self.fs.rename(&path, &self.dir.join(SPARE_NAME))?;
                    self.spare = Some(Spare { file: segment.file, length });
                }
                Some(_) | None => self.fs.remove(&path)?,
            }
            removed = true;
        }
        if removed {
            self.fs.sync_dir(&self.dir)?;
            self.show_room(&mut self.shared.state.lock());
        }
        Ok(())
    }

    pub(in super::super) fn show_room(&self, state: &mut State) {
        let next = self.prepared.as_ref();
        state.room.current = self.current.free();
        state.room.prepared = next.map_or(0, Prepared::free);
        state.stats.bytes_written = self.bytes_written;
        state.stats.segments = self.written.uses.len() as u64 + u64::from(next.is_some());
        state.stats.disk_bytes = self.written.uses.disk_bytes()
            + next.map_or(0, |next| next.length)
            + self.spare.as_ref().map_or(0, |spare| spare.length);
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
