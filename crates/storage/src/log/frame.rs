//! Frames and records: how a batch of changes becomes bytes, and bytes become changes.
//!
//! Reading takes any bytes whatsoever and never panics; what does not fit is a [`Fault`]. The
//! byte tables stand in the header of [`super`].

use crate::log_store::{GroupId, HardState, LogPosition};

pub(super) const FRAME_HEADER_BYTES: usize = 24;
const FRAME_MAGIC: [u8; 4] = *b"AHfr";
/// What a frame costs beside its records: header and padding.
pub(super) const FRAME_OVERHEAD_BYTES: u64 = FRAME_HEADER_BYTES as u64 + 7;
/// The largest seal frame.
pub(super) const SEAL_BYTES: u64 = FRAME_OVERHEAD_BYTES + 1 + 10;
/// The largest opening record without its groups.
pub(super) const OPENING_BYTES: u64 = 1 + 2 * 10 + 10;
/// What one group adds to an opening record, at most.
pub(super) const OPENING_GROUP_BYTES: u64 = 15 + 1 + 21 + 20 + 10 + 20;
/// The largest record without entries.
pub(super) const SMALL_RECORD_BYTES: u64 = 1 + 15 + 10 + 1 + 20;
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

/// A frame whose checksum is right.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) batch: u64,
    pub(super) checksum: u32,
    pub(super) previous_checksum: u32,
    pub(super) payload: &'a [u8],
    /// Offset of the first byte behind it.
    pub(super) end: usize,
}

/// What does not fit.
pub(super) type Fault = &'static str;

fn frame_checksum(place: FramePlace, bytes: &[u8]) -> u32 {
    let mut prefix = [0; 24];
    prefix[..8].copy_from_slice(&place.log_id.to_le_bytes());
    prefix[8..16].copy_from_slice(&place.segment.to_le_bytes());
    prefix[16..].copy_from_slice(&place.offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&prefix), bytes)
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
}

impl FrameWriter {
    pub(super) fn begin(&mut self) {
        self.buffer.clear();
        self.buffer.resize(FRAME_HEADER_BYTES, 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.len() <= FRAME_HEADER_BYTES
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
        let checksum = frame_checksum(place, &self.buffer[4..]);
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

    /// Starts an append, or a copy of entries from an older segment; `count` entries follow.
    pub(super) fn append(&mut self, group: GroupId, first: u64, count: usize, copied: bool) {
        self.head(if copied { Kind::Copy } else { Kind::Append }, group);
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
            | u8::from(carried.live.is_some()) << 2;
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
}

/// One record as read. Entries and opened groups follow their head and are read one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Append { group: GroupId, first: u64, count: u64, copied: bool },
    Truncate { group: GroupId, from: u64, last: Option<LogPosition> },
    HardState { group: GroupId, hard_state: HardState },
    Purge { group: GroupId, up_to: LogPosition },
    Drop { group: GroupId },
    Opening { oldest: u64, groups: u64 },
    Seal { successor: u64 },
    Oldest { oldest: u64 },
    Marker,
}

/// One entry as read; `at` counts from the start of the payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryRecord {
    pub(super) term: u64,
    pub(super) at: usize,
    pub(super) length: u32,
}

/// Reads the frame at `place.offset` of a segment's bytes.
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
    if frame_checksum(place, &whole[4..]) != checksum {
        return Err("the frame's checksum is wrong");
    }
    Ok(Frame {
        batch: fixed_u64(&header[12..20]),
        checksum,
        previous_checksum: fixed_u32(&header[20..24]),
        payload: &whole[FRAME_HEADER_BYTES..],
        end: at + whole.len(),
    })
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
            1 | 6 => Record::Append {
                group: self.group()?,
                first: self.varint()?,
                count: self.varint()?,
                copied: kind == Kind::Copy as u8,
            },
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
            0 if self.payload[self.at..].iter().all(|byte| *byte == Kind::Padding as u8) => {
                self.at = self.payload.len();
                return Ok(None);
            }
            _ => return Err("a record is of an unknown kind"),
        }))
    }

    /// The next entry of an append, its checksum verified.
    pub(super) fn entry(&mut self, group: GroupId, index: u64) -> Result<EntryRecord, Fault> {
        let term = self.varint()?;
        let length = u32::try_from(self.varint()?).map_err(|_| "an entry is too long")?;
        let checksum = fixed_u32(self.take(ENTRY_CHECKSUM_BYTES as usize)?);
        let at = self.at;
        let content = self.take(length as usize)?;
        if entry_checksum(group, LogPosition { term, index }, content) != checksum {
            return Err("an entry's checksum is wrong");
        }
        Ok(EntryRecord { term, at, length })
    }

    /// The next group of an opening record.
    pub(super) fn opening_group(&mut self) -> Result<(GroupId, Carried), Fault> {
        let group = self.group()?;
        let flags = self.byte()?;
        if 7 < flags {
            return Err("a carried group's flags are unknown");
        }
        let hard_state = if flags & 1 != 0 { Some(self.hard_state()?) } else { None };
        let purged = if flags & 2 != 0 { Some(self.position()?) } else { None };
        let live = if flags & 4 != 0 { Some((self.varint()?, self.position()?)) } else { None };
        Ok((group, Carried { hard_state, purged, live }))
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
