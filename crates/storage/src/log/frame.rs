//! Frames and records: how a batch of changes becomes bytes, and bytes become changes.
//!
//! A frame's checksum covers its structure: everything but the entries' contents, and so the
//! checksums of these contents too. Damage inside a content leaves the structure readable, and with
//! it the knowledge whose entry is damaged.
//!
//! Reading takes any bytes whatsoever and never panics; what does not fit is a [`Fault`]. The
//! byte tables stand in the header of [`super`].

use std::ops::Range;

use crate::log_store::{GroupId, HardState, LogPosition, Lost};

pub(super) const FRAME_HEADER_BYTES: usize = 24;
const FRAME_MAGIC: [u8; 4] = *b"AHfr";
/// What a frame costs beside its records: header, an empty echo, and padding.
pub(super) const FRAME_OVERHEAD_BYTES: u64 = FRAME_HEADER_BYTES as u64 + 2 + 7;
/// The largest seal frame.
pub(super) const SEAL_BYTES: u64 = FRAME_OVERHEAD_BYTES + 1 + 10;
/// The largest opening record without its groups.
pub(super) const OPENING_BYTES: u64 = 1 + 2 * 10 + 10;
/// What one group adds to an opening record, at most.
pub(super) const OPENING_GROUP_BYTES: u64 = 15 + 1 + 21 + 20 + 10 + 20 + 20;
/// The largest record without entries.
pub(super) const SMALL_RECORD_BYTES: u64 = 1 + 15 + 10 + 1 + 20 + 20;
/// What one hard state adds to an echo, at most.
pub(super) const ECHO_BYTES: u64 = 15 + 21;
/// The least that one entry takes in a frame.
pub(super) const ENTRY_BYTES_MIN: u64 = 1 + 1 + 4;
/// What an entry costs beside its content, at most.
pub(super) const ENTRY_OVERHEAD_BYTES: u64 = 10 + 5 + 4;
/// Bytes of an entry's checksum, directly before its content.
pub(super) const ENTRY_CHECKSUM_BYTES: u32 = 4;

/// Where a frame is; part of what its checksum covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct FramePlace {
    pub(super) log_id: u64,
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// A frame whose structure is right.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) batch: u64,
    pub(super) checksum: u32,
    pub(super) previous_checksum: u32,
    pub(super) payload: &'a [u8],
    /// Offset of the first byte behind it.
    pub(super) end: usize,
}

/// A hard state that was saved, or `None` if its group was dropped.
pub(super) type Echo = (GroupId, Option<HardState>);
/// What an append leaves out, as flags of its kind. One entry at a time of a first incarnation, term
/// after the same term, is what a log mostly consists of.
const OMITS_COUNT: u8 = 16;
/// The term in front is the first entry's.
const OMITS_PREVIOUS: u8 = 32;
/// The incarnation is 1.
const OMITS_INCARNATION: u8 = 64;
const APPEND_FLAGS: u8 = OMITS_COUNT | OMITS_PREVIOUS | OMITS_INCARNATION;
/// Flags of a hard state that is none.
const ECHO_DROPPED: u8 = 4;

/// What does not fit.
pub(super) type Fault = &'static str;

/// Checksum of a frame's place; its structure is to follow.
fn place_checksum(place: FramePlace) -> u32 {
    let mut prefix = [0; 24];
    prefix[..8].copy_from_slice(&place.log_id.to_le_bytes());
    prefix[8..16].copy_from_slice(&place.segment.to_le_bytes());
    prefix[16..].copy_from_slice(&place.offset.to_le_bytes());
    crc32c::crc32c(&prefix)
}

/// Checksum of one entry, over its place as well as its content.
pub(super) fn entry_checksum(group: GroupId, position: LogPosition, content: &[u8]) -> u32 {
    let mut prefix = [0; 28];
    prefix[..8].copy_from_slice(&group.shard.to_le_bytes());
    prefix[8..12].copy_from_slice(&group.incarnation.to_le_bytes());
    prefix[12..20].copy_from_slice(&position.term.to_le_bytes());
    prefix[20..].copy_from_slice(&position.index.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&prefix), content)
}

/// Builds one frame in a reused buffer.
#[derive(Debug, Default)]
pub(super) struct FrameWriter {
    buffer: Vec<u8>,
    /// Where the entries' contents are.
    contents: Vec<Range<usize>>,
}

impl FrameWriter {
    pub(super) fn begin(&mut self) {
        self.buffer.clear();
        self.buffer.resize(FRAME_HEADER_BYTES, 0);
        self.contents.clear();
    }

    /// Bytes so far, the header included.
    pub(super) fn length(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// Pads the frame, fills its header and returns its bytes and checksum.
    pub(super) fn finish(
        &mut self,
        place: FramePlace,
        batch: u64,
        previous_checksum: u32,
    ) -> (&[u8], u32) {
        self.buffer.resize(self.buffer.len().next_multiple_of(8), 0);
        let payload = self.buffer.len() - FRAME_HEADER_BYTES;
        let payload = u32::try_from(payload).unwrap_or(u32::MAX);
        self.buffer[4..8].copy_from_slice(&FRAME_MAGIC);
        self.buffer[8..12].copy_from_slice(&payload.to_le_bytes());
        self.buffer[12..20].copy_from_slice(&batch.to_le_bytes());
        self.buffer[20..24].copy_from_slice(&previous_checksum.to_le_bytes());
        let mut checksum = place_checksum(place);
        let mut from = 4;
        for content in &self.contents {
            checksum = crc32c::crc32c_append(checksum, &self.buffer[from..content.start]);
            from = content.end;
        }
        checksum = crc32c::crc32c_append(checksum, &self.buffer[from..]);
        self.buffer[..4].copy_from_slice(&checksum.to_le_bytes());
        (&self.buffer, checksum)
    }

    fn varint(&mut self, mut value: u64) {
        loop {
            let low = (value & 0x7f).to_le_bytes()[0];
            value >>= 7;
            if value == 0 {
                self.buffer.push(low);
                return;
            }
            self.buffer.push(low | 0x80);
        }
    }

    fn head(&mut self, kind: Kind, group: GroupId) {
        self.buffer.push(kind as u8);
        self.group(group);
    }

    fn group(&mut self, group: GroupId) {
        self.varint(group.shard);
        self.varint(u64::from(group.incarnation));
    }

    fn position(&mut self, position: LogPosition) {
        self.varint(position.term);
        self.varint(position.index);
    }

    fn hard_state(&mut self, hard_state: HardState) {
        let voted = u8::from(hard_state.voted_for.is_some());
        self.buffer.push(voted | u8::from(hard_state.committed) << 1);
        self.varint(hard_state.term);
        if let Some(voted_for) = hard_state.voted_for {
            self.varint(voted_for);
        }
    }

    /// Starts an append; `count` entries follow, the first one at `first`. `previous` is the term of
    /// what is in front of it, if anything is.
    pub(super) fn append(
        &mut self,
        group: GroupId,
        first: LogPosition,
        count: usize,
        previous: Option<u64>,
    ) {
        let omits = |omits: bool, flag: u8| if omits { flag } else { 0 };
        let flags = omits(count == 1, OMITS_COUNT)
            | omits(count != 0 && previous == Some(first.term), OMITS_PREVIOUS)
            | omits(group.incarnation == 1, OMITS_INCARNATION);
        self.buffer.push(Kind::Append as u8 | flags);
        self.varint(group.shard);
        if flags & OMITS_INCARNATION == 0 {
            self.varint(u64::from(group.incarnation));
        }
        self.varint(first.index);
        if flags & OMITS_COUNT == 0 {
            self.varint(count as u64);
        }
        if flags & OMITS_PREVIOUS == 0 {
            self.varint(previous.map_or(0, |term| term.saturating_add(1)));
        }
    }

    /// Starts a copy of entries from an older segment; `count` entries follow.
    pub(super) fn copy(&mut self, group: GroupId, first: u64, count: usize) {
        self.head(Kind::Copy, group);
        self.varint(first);
        self.varint(count as u64);
    }

    /// Adds one entry; returns where in the frame its content starts.
    pub(super) fn entry(&mut self, group: GroupId, position: LogPosition, content: &[u8]) -> u32 {
        self.varint(position.term);
        self.varint(content.len() as u64);
        let checksum = entry_checksum(group, position, content);
        self.buffer.extend_from_slice(&checksum.to_le_bytes());
        let at = self.buffer.len();
        self.buffer.extend_from_slice(content);
        self.contents.push(at..self.buffer.len());
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    pub(super) fn truncate(&mut self, group: GroupId, from: u64, last: Option<LogPosition>) {
        self.head(Kind::Truncate, group);
        self.varint(from);
        self.buffer.push(u8::from(last.is_some()));
        if let Some(last) = last {
            self.position(last);
        }
    }

    pub(super) fn save_hard_state(&mut self, group: GroupId, hard_state: HardState) {
        self.head(Kind::HardState, group);
        self.hard_state(hard_state);
    }

    pub(super) fn purge(&mut self, group: GroupId, up_to: LogPosition) {
        self.head(Kind::Purge, group);
        self.position(up_to);
    }

    /// Repeats the hard states of the frame before.
    pub(super) fn echo(&mut self, echoes: &[Echo]) {
        self.buffer.push(Kind::Echo as u8);
        self.varint(echoes.len() as u64);
        for (group, hard_state) in echoes {
            self.group(*group);
            match hard_state {
                Some(hard_state) => self.hard_state(*hard_state),
                None => self.buffer.push(ECHO_DROPPED),
            }
        }
    }

    pub(super) fn lost(
        &mut self,
        group: GroupId,
        from: u64,
        last: Option<LogPosition>,
        lost: Lost,
    ) {
        self.head(Kind::Lost, group);
        self.varint(from);
        self.buffer.push(u8::from(last.is_some()) | u8::from(lost.hard_state_known) << 1);
        if let Some(last) = last {
            self.position(last);
        }
        self.position(lost.to);
    }

    pub(super) fn drop_group(&mut self, group: GroupId) {
        self.head(Kind::Drop, group);
    }

    /// Starts the record that opens a segment; `groups` of [`FrameWriter::opening_group`] follow.
    pub(super) fn opening(&mut self, oldest: u64, groups: usize) {
        self.buffer.push(Kind::Opening as u8);
        self.varint(oldest);
        self.varint(groups as u64);
    }

    pub(super) fn opening_group(&mut self, group: GroupId, carried: Carried) {
        self.group(group);
        let flags = u8::from(carried.hard_state.is_some())
            | u8::from(carried.purged.is_some()) << 1
            | u8::from(carried.live.is_some()) << 2
            | u8::from(carried.lost.is_some()) << 3
            | u8::from(carried.lost.is_some_and(|lost| lost.hard_state_known)) << 4;
        self.buffer.push(flags);
        if let Some(hard_state) = carried.hard_state {
            self.hard_state(hard_state);
        }
        if let Some(purged) = carried.purged {
            self.position(purged);
        }
        if let Some((first, last)) = carried.live {
            self.varint(first);
            self.position(last);
        }
        if let Some(lost) = carried.lost {
            self.position(lost.to);
        }
    }

    pub(super) fn seal(&mut self, successor: u64) {
        self.buffer.push(Kind::Seal as u8);
        self.varint(successor);
    }

    pub(super) fn oldest(&mut self, oldest: u64) {
        self.buffer.push(Kind::Oldest as u8);
        self.varint(oldest);
    }

    pub(super) fn marker(&mut self) {
        self.buffer.push(Kind::Marker as u8);
    }
}

/// What a new segment carries forward of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) hard_state: Option<HardState>,
    pub(super) purged: Option<LogPosition>,
    /// First index and last position of the live entries.
    pub(super) live: Option<(u64, LogPosition)>,
    pub(super) lost: Option<Lost>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Padding = 0,
    Append = 1,
    Truncate = 2,
    HardState = 3,
    Purge = 4,
    Drop = 5,
    Copy = 6,
    Opening = 7,
    Seal = 8,
    Oldest = 9,
    Marker = 10,
    Echo = 11,
    Lost = 12,
}

/// One record as read. Entries and opened groups follow their head and are read one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Append { group: GroupId, first: u64, count: u64, previous: Option<u64> },
    Copy { group: GroupId, first: u64, count: u64 },
    Truncate { group: GroupId, from: u64, last: Option<LogPosition> },
    HardState { group: GroupId, hard_state: HardState },
    Purge { group: GroupId, up_to: LogPosition },
    Drop { group: GroupId },
    Opening { oldest: u64, groups: u64 },
    Seal { successor: u64 },
    Oldest { oldest: u64 },
    Marker,
    Echo { count: u64 },
    Lost { group: GroupId, from: u64, last: Option<LogPosition>, lost: Lost },
}

/// One entry as read; `at` counts from the start of the payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryRecord {
    pub(super) term: u64,
    pub(super) at: usize,
    pub(super) length: u32,
    /// Whether the content is what was written.
    pub(super) intact: bool,
}

struct EntryHead {
    term: u64,
    at: usize,
    length: u32,
    checksum: u32,
}

/// Reads the frame at `place.offset` of a segment's bytes. The entries' contents are not verified:
/// [`RecordReader::entry`] does that, for each by itself.
pub(super) fn read_frame(bytes: &[u8], place: FramePlace) -> Result<Frame<'_>, Fault> {
    let at = usize::try_from(place.offset).map_err(|_| "the offset is out of range")?;
    let rest = bytes.get(at..).ok_or("the frame lies beyond the end")?;
    let header = rest.get(..FRAME_HEADER_BYTES).ok_or("the frame's header is cut")?;
    if header[4..8] != FRAME_MAGIC {
        return Err("there is no frame");
    }
    let length = fixed_u32(&header[8..12]) as usize;
    if length == 0 || !length.is_multiple_of(8) {
        return Err("the frame's length is wrong");
    }
    let whole = rest.get(..FRAME_HEADER_BYTES + length).ok_or("the frame is cut")?;
    let checksum = fixed_u32(&header[..4]);
    let payload = &whole[FRAME_HEADER_BYTES..];
    let start = crc32c::crc32c_append(place_checksum(place), &header[4..]);
    if structure_checksum(payload, start) != Ok(checksum) {
        return Err("the frame's checksum is wrong");
    }
    Ok(Frame {
        batch: fixed_u64(&header[12..20]),
        checksum,
        previous_checksum: fixed_u32(&header[20..24]),
        payload,
        end: at + whole.len(),
    })
}

/// Gives a frame that was changed the checksums of what it says now. Returns whether it says
/// anything at all.
#[cfg(test)]
pub(super) fn reseal(bytes: &mut [u8], place: FramePlace) -> bool {
    let at = usize::try_from(place.offset).unwrap_or(usize::MAX);
    let length = bytes.get(at + 8..at + 12).map_or(0, fixed_u32) as usize;
    let Some(frame) = bytes.get_mut(at..at + FRAME_HEADER_BYTES + length) else { return false };
    let (header, payload) = frame.split_at_mut(FRAME_HEADER_BYTES);
    let copy = payload.to_vec();
    let mut records = RecordReader::new(&copy);
    while let Ok(Some(record)) = records.record() {
        let (Record::Append { group, first, count, .. } | Record::Copy { group, first, count }) =
            record
        else {
            if records.skip(&record).is_err() {
                return false;
            }
            continue;
        };
        for offset in 0..count {
            let Ok(head) = records.entry_head() else { return false };
            let position = LogPosition { term: head.term, index: first.wrapping_add(offset) };
            let content = &copy[head.at..head.at + head.length as usize];
            let checksum = entry_checksum(group, position, content).to_le_bytes();
            payload[head.at - checksum.len()..head.at].copy_from_slice(&checksum);
        }
    }
    let start = crc32c::crc32c_append(place_checksum(place), &header[4..]);
    let Ok(checksum) = structure_checksum(payload, start) else { return false };
    header[..4].copy_from_slice(&checksum.to_le_bytes());
    true
}

/// The kinds of a frame's records with their flags, as they are on disk.
#[cfg(test)]
pub(super) fn kinds_of(frame: &[u8]) -> Vec<u8> {
    let payload = &frame[FRAME_HEADER_BYTES..];
    let mut records = RecordReader::new(payload);
    let mut kinds = Vec::new();
    while let Some(kind) = payload.get(records.at).copied() {
        let Ok(Some(record)) = records.record() else { break };
        kinds.push(kind);
        if records.skip(&record).is_err() {
            break;
        }
    }
    kinds
}

/// Continues a checksum over all of a payload but the entries' contents.
fn structure_checksum(payload: &[u8], mut checksum: u32) -> Result<u32, Fault> {
    let mut records = RecordReader::new(payload);
    let mut from = 0;
    while let Some(record) = records.record()? {
        let (Record::Append { count, .. } | Record::Copy { count, .. }) = record else {
            records.skip(&record)?;
            continue;
        };
        for _ in 0..count {
            let head = records.entry_head()?;
            checksum = crc32c::crc32c_append(checksum, &payload[from..head.at]);
            from = head.at + head.length as usize;
        }
    }
    Ok(crc32c::crc32c_append(checksum, &payload[from..]))
}

/// What a whole frame's bytes say of hard states, to be repeated by the next one.
pub(super) fn echoes_of(frame: &[u8]) -> Vec<Echo> {
    let mut records = RecordReader::new(frame.get(FRAME_HEADER_BYTES..).unwrap_or_default());
    let mut found = Vec::new();
    while let Ok(Some(record)) = records.record() {
        if let Record::HardState { group, hard_state } = record {
            found.push((group, Some(hard_state)));
        }
        if let Record::Drop { group } = record {
            found.push((group, None));
        }
        if records.skip(&record).is_err() {
            break;
        }
    }
    found
}

impl Frame<'_> {
    /// Whether all entries' contents are what was written.
    pub(super) fn is_whole(&self) -> bool {
        let mut records = RecordReader::new(self.payload);
        let mut whole = true;
        while let Ok(Some(record)) = records.record() {
            whole &= records.skip(&record).unwrap_or(false);
        }
        whole
    }
}

fn fixed_u32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

fn fixed_u64(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// Reads the records of a payload one after the other.
#[derive(Clone, Debug)]
pub(super) struct RecordReader<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> RecordReader<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { payload, at: 0 }
    }

    /// The next record, or `None` at the end.
    pub(super) fn record(&mut self) -> Result<Option<Record>, Fault> {
        if self.at == self.payload.len() {
            return Ok(None);
        }
        let kind = self.byte()?;
        Ok(Some(match kind {
            _ if kind & !APPEND_FLAGS == Kind::Append as u8 => self.append(kind)?,
            6 => {
                let (group, first) = (self.group()?, self.varint()?);
                Record::Copy { group, first, count: self.varint()? }
            }
            2 => {
                let (group, from) = (self.group()?, self.varint()?);
                let last = if self.flag()? { Some(self.position()?) } else { None };
                Record::Truncate { group, from, last }
            }
            3 => Record::HardState { group: self.group()?, hard_state: self.hard_state()? },
            4 => Record::Purge { group: self.group()?, up_to: self.position()? },
            5 => Record::Drop { group: self.group()? },
            7 => Record::Opening { oldest: self.varint()?, groups: self.varint()? },
            8 => Record::Seal { successor: self.varint()? },
            9 => Record::Oldest { oldest: self.varint()? },
            10 => Record::Marker,
            11 => Record::Echo { count: self.varint()? },
            12 => {
                let (group, from) = (self.group()?, self.varint()?);
                let flags = self.byte()?;
                if 3 < flags {
                    return Err("a loss's flags are unknown");
                }
                let last = if flags & 1 != 0 { Some(self.position()?) } else { None };
                let lost = Lost { to: self.position()?, hard_state_known: flags & 2 != 0 };
                Record::Lost { group, from, last, lost }
            }
            0 if self.payload[self.at..].iter().all(|byte| *byte == Kind::Padding as u8) => {
                self.at = self.payload.len();
                return Ok(None);
            }
            _ => return Err("a record is of an unknown kind"),
        }))
    }

    fn append(&mut self, flags: u8) -> Result<Record, Fault> {
        let shard = self.varint()?;
        let incarnation = match flags & OMITS_INCARNATION {
            0 => u32::try_from(self.varint()?).map_err(|_| "an incarnation is too large")?,
            _ => 1,
        };
        let first = self.varint()?;
        let count = if flags & OMITS_COUNT == 0 { self.varint()? } else { 1 };
        let previous = match flags & OMITS_PREVIOUS {
            0 => self.varint()?.checked_sub(1),
            _ if count == 0 => return Err("an append without entries leaves out a term"),
            // The first entry begins with its term.
            _ => Some(self.clone().varint()?),
        };
        Ok(Record::Append { group: GroupId { shard, incarnation }, first, count, previous })
    }

    /// The next entry of an append or copy, its content verified.
    pub(super) fn entry(&mut self, group: GroupId, index: u64) -> Result<EntryRecord, Fault> {
        let head = self.entry_head()?;
        let content = &self.payload[head.at..head.at + head.length as usize];
        let position = LogPosition { term: head.term, index };
        let intact = entry_checksum(group, position, content) == head.checksum;
        Ok(EntryRecord { term: head.term, at: head.at, length: head.length, intact })
    }

    fn entry_head(&mut self) -> Result<EntryHead, Fault> {
        let term = self.varint()?;
        let length = u32::try_from(self.varint()?).map_err(|_| "an entry is too long")?;
        let checksum = fixed_u32(self.take(ENTRY_CHECKSUM_BYTES as usize)?);
        let at = self.at;
        self.take(length as usize)?;
        Ok(EntryHead { term, at, length, checksum })
    }

    /// Passes over what follows a record's head; returns whether its entries are intact.
    pub(super) fn skip(&mut self, record: &Record) -> Result<bool, Fault> {
        let mut intact = true;
        match *record {
            Record::Append { group, first, count, .. } | Record::Copy { group, first, count } => {
                for offset in 0..count {
                    intact &= self.entry(group, first.wrapping_add(offset))?.intact;
                }
            }
            Record::Opening { groups, .. } => {
                (0..groups).try_for_each(|_| self.opening_group().map(drop))?;
            }
            Record::Echo { count } => (0..count).try_for_each(|_| self.echoed().map(drop))?,
            Record::Truncate { .. }
            | Record::HardState { .. }
            | Record::Purge { .. }
            | Record::Drop { .. }
            | Record::Seal { .. }
            | Record::Oldest { .. }
            | Record::Marker
            | Record::Lost { .. } => {}
        }
        Ok(intact)
    }

    /// The next hard state of an echo.
    pub(super) fn echoed(&mut self) -> Result<Echo, Fault> {
        let group = self.group()?;
        if self.payload.get(self.at) == Some(&ECHO_DROPPED) {
            self.at += 1;
            return Ok((group, None));
        }
        Ok((group, Some(self.hard_state()?)))
    }

    /// The next group of an opening record.
    pub(super) fn opening_group(&mut self) -> Result<(GroupId, Carried), Fault> {
        let group = self.group()?;
        let flags = self.byte()?;
        if 31 < flags {
            return Err("a carried group's flags are unknown");
        }
        let hard_state = if flags & 1 != 0 { Some(self.hard_state()?) } else { None };
        let purged = if flags & 2 != 0 { Some(self.position()?) } else { None };
        let live = if flags & 4 != 0 { Some((self.varint()?, self.position()?)) } else { None };
        let hard_state_known = flags & 16 != 0;
        let lost = if flags & 8 != 0 {
            Some(Lost { to: self.position()?, hard_state_known })
        } else {
            None
        };
        Ok((group, Carried { hard_state, purged, live, lost }))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let rest = &self.payload[self.at..];
        let taken = rest.get(..length).ok_or("a record is cut")?;
        self.at += length;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn flag(&mut self) -> Result<bool, Fault> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && 1 < low {
                return Err("a number is too large");
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long")
    }

    fn group(&mut self) -> Result<GroupId, Fault> {
        let shard = self.varint()?;
        let incarnation =
            u32::try_from(self.varint()?).map_err(|_| "an incarnation is too large")?;
        Ok(GroupId { shard, incarnation })
    }

    fn position(&mut self) -> Result<LogPosition, Fault> {
        Ok(LogPosition { term: self.varint()?, index: self.varint()? })
    }

    fn hard_state(&mut self) -> Result<HardState, Fault> {
        let flags = self.byte()?;
        if 3 < flags {
            return Err("a hard state's flags are unknown");
        }
        let term = self.varint()?;
        let voted_for = if flags & 1 != 0 { Some(self.varint()?) } else { None };
        Ok(HardState { term, voted_for, committed: flags & 2 != 0 })
    }
}
