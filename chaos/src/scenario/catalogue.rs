//! The fault catalogue: every fault there is, what it can be told, and what it takes.

use std::collections::BTreeMap;

/// A row of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// SIGKILL; healed by a start.
    Kill,
    /// Links fall silent, then SIGKILL, and what was not synced is gone; healed by a start.
    PowerLoss,
    /// SIGSTOP; healed by SIGCONT.
    Pause,
    /// SIGSTOP and SIGCONT in turn: the node has a share of its processor time.
    Starve,
    /// Told to stop, as an operator does; healed by a start.
    Stop,
    /// Stopped and started one after the other, each when the one before is ready.
    Roll,
    /// Killed, its disk emptied, started again as nobody.
    Wipe,
    /// Killed, some bits of a file flipped, started again.
    BitFlip,
    /// Killed, the end of a file cut off, started again.
    TornTail,
    /// Silence to and from everybody.
    Isolate,
    /// Silence from everybody.
    OneWayIn,
    /// Silence to everybody.
    OneWayOut,
    /// Two halves of the nodes do not hear each other; clients hear both.
    Halves,
    /// The same, but one node hears both halves.
    Bridge,
    /// Each node hears only its two neighbours.
    Ring,
    /// Isolated, and not, and isolated again.
    Flap,
    /// Clients cannot reach it; other nodes can.
    ClientsOnly,
    /// Other nodes cannot reach it; clients can.
    PeersOnly,
    /// Connections to it are refused; open ones stay.
    Refuse,
    /// Its connections are reset, over and over.
    Reset,
    /// Its links have a delay, jitter or little bandwidth.
    Slow,
    /// Its links lose packets.
    Lossy,
    /// Its wall clock jumps.
    ClockJump,
    /// Its clocks run fast.
    ClockDrift,
    /// Its disk is full.
    DiskFull,
    /// Writes to its disk fail.
    DiskWriteError,
    /// Syncs of its disk fail.
    DiskSyncError,
    /// Its disk takes its time.
    DiskStall,
    /// It ends itself where its code reaches a failpoint; healed by a start.
    CrashAt,
}

/// What a scenario says of a fault, defaults filled in. Which of them count is the kind's business.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultSettings {
    /// Delay of each direction, in milliseconds.
    pub delay_ms: f64,
    /// Jitter of each direction, in milliseconds.
    pub jitter_ms: f64,
    /// Bandwidth of each direction in bytes a second; 0 sets no bound.
    pub bytes_per_second: f64,
    /// Share of packets lost, in [0, 1].
    pub loss: f64,
    /// Time of one turn of what goes in turns, in milliseconds.
    pub period_ms: f64,
    /// Share of processor time that is left, in (0, 1).
    pub share: f64,
    /// How far the clock jumps, in milliseconds, either way.
    pub by_ms: f64,
    /// How much faster clocks run, 0.01 is one percent.
    pub rate: f64,
    /// How much longer each disk call takes, in milliseconds.
    pub stall_ms: f64,
    /// Bits flipped, or bytes cut off.
    pub count: f64,
    /// Which file is damaged.
    pub file: DamagedFile,
    /// The failpoint at which the node ends.
    pub point: &'static str,
}

/// Which file of a node is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamagedFile {
    /// A segment of the log.
    Log,
    /// A snapshot.
    Snapshot,
    /// A file of the state engine.
    State,
}

/// The one place where these are written down.
impl Default for FaultSettings {
    fn default() -> Self {
        Self {
            delay_ms: 40.0,
            jitter_ms: 10.0,
            bytes_per_second: 0.0,
            loss: 0.05,
            period_ms: 1_000.0,
            share: 0.1,
            by_ms: 60_000.0,
            rate: 0.05,
            stall_ms: 1_000.0,
            count: 3.0,
            file: DamagedFile::Log,
            point: "apply.committed",
        }
    }
}

/// What a row needs and takes.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The fault.
    pub kind: FaultKind,
    /// As scenarios write it.
    pub name: &'static str,
    /// What it does, for people.
    pub text: &'static str,
    /// Settings that it takes beside target and times.
    pub settings: &'static [&'static str],
    /// Whether the node must be one that can be broken on command.
    pub needs_hooks: bool,
    /// Whether the node is up while the fault lasts.
    pub node_is_up: bool,
}

macro_rules! rows {
    ($($kind:ident $name:literal [$($setting:literal)*] $hooks:literal $up:literal $text:literal;)+) => {
        /// All rows, in the order in which they are shown.
        pub const ROWS: &[Row] = &[$(Row {
            kind: FaultKind::$kind,
            name: $name,
            text: $text,
            settings: &[$($setting),*],
            needs_hooks: $hooks,
            node_is_up: $up,
        }),+];

        impl FaultKind {
            /// Its row.
            pub fn row(self) -> &'static Row {
                // As many rows as variants, in their order: a test compares.
                &ROWS[self as usize]
            }
        }
    };
}

rows! {
    Kill "kill" [] false false "SIGKILL, started again";
    PowerLoss "power_loss" [] true false "links silent, then SIGKILL; unsynced writes are gone";
    Pause "pause" [] false true "SIGSTOP, SIGCONT";
    Starve "starve" ["share" "period_ms"] false true "SIGSTOP and SIGCONT in turn: a share of its processor time is left";
    Stop "stop" [] false false "told to stop, started again";
    Roll "roll" [] false false "stopped and started one after the other, each when the one before is ready";
    Wipe "wipe" [] false false "killed, disk emptied, started as nobody";
    BitFlip "bit_flip" ["count" "file"] false false "killed, bits of a file flipped, started again";
    TornTail "torn_tail" ["count" "file"] false false "killed, the end of a file cut off, started again";
    Isolate "isolate" [] false true "silence to and from everybody";
    OneWayIn "one_way_in" [] false true "silence from everybody: it can speak and not hear";
    OneWayOut "one_way_out" [] false true "silence to everybody: it can hear and not speak";
    Halves "halves" [] false true "the targets and the others do not hear each other; clients hear both";
    Bridge "bridge" [] false true "two halves that do not hear each other, and one node that hears both";
    Ring "ring" [] false true "each node hears only its neighbours";
    Flap "flap" ["period_ms"] false true "isolated and not, in turn";
    ClientsOnly "clients_only" [] false true "silence between it and clients";
    PeersOnly "peers_only" [] false true "silence between it and the other nodes";
    Refuse "refuse" [] false true "new connections are refused, open ones stay";
    Reset "reset" ["period_ms"] false true "all its connections are reset, over and over";
    Slow "slow" ["delay_ms" "jitter_ms" "bytes_per_second"] false true "delay, jitter, little bandwidth";
    Lossy "lossy" ["loss"] false true "lost packets, as a stream feels them: waits for a retransmission";
    ClockJump "clock_jump" ["by_ms"] true true "the wall clock jumps, and back";
    ClockDrift "clock_drift" ["rate"] true true "both clocks run fast";
    DiskFull "disk_full" [] true true "no space left for the log";
    DiskWriteError "disk_write_error" [] true true "writes of the log fail: the node must end itself";
    DiskSyncError "disk_sync_error" [] true true "syncs of the log fail: the node must end itself";
    DiskStall "disk_stall" ["stall_ms"] true true "each write and sync takes longer";
    CrashAt "crash_at" ["point"] true false "ends itself when its code next reaches a failpoint, started again";
}

impl Row {
    /// The row of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.name == name)
    }
}

impl FaultSettings {
    /// Takes a number over by its name.
    ///
    /// # Errors
    /// What is allowed instead.
    pub(super) fn set(&mut self, name: &str, value: f64) -> Result<(), String> {
        let (slot, low, high, unit) = match name {
            "delay_ms" => (&mut self.delay_ms, 0.0, 60_000.0, "milliseconds"),
            "jitter_ms" => (&mut self.jitter_ms, 0.0, 60_000.0, "milliseconds"),
            "bytes_per_second" => (&mut self.bytes_per_second, 0.0, 1e12, "bytes a second"),
            "loss" => (&mut self.loss, 0.0, 1.0, "a share"),
            "period_ms" => (&mut self.period_ms, 10.0, 600_000.0, "milliseconds"),
            "share" => (&mut self.share, 0.01, 0.99, "a share"),
            "by_ms" => (&mut self.by_ms, -1e9, 1e9, "milliseconds"),
            "rate" => (&mut self.rate, 0.0, 1.0, "a share"),
            "stall_ms" => (&mut self.stall_ms, 1.0, 600_000.0, "milliseconds"),
            "count" => (&mut self.count, 1.0, 1e6, "bits or bytes"),
            _ => return Err(format!("there is no setting `{name}`")),
        };
        if !(low..=high).contains(&value) {
            return Err(format!("{name} is {value}; it is {unit} from {low} to {high}"));
        }
        *slot = value;
        Ok(())
    }
}

impl DamagedFile {
    /// As scenarios write them.
    pub(super) const NAMES: [(&'static str, Self); 3] =
        [("log", Self::Log), ("snapshot", Self::Snapshot), ("state", Self::State)];

    /// The directory below the node's.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Snapshot => "snapshots",
            Self::State => "state",
        }
    }
}

/// The rows that were hit, and how often, out of names.
pub fn coverage<'a>(hit: impl Iterator<Item = &'a str>) -> BTreeMap<&'static str, u32> {
    let mut counts: BTreeMap<&'static str, u32> = ROWS.iter().map(|row| (row.name, 0)).collect();
    for name in hit {
        if let Some(row) = Row::named(name) {
            *counts.entry(row.name).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_row() {
        for (index, row) in ROWS.iter().enumerate() {
            assert_eq!(row.kind as usize, index, "{}", row.name);
            assert_eq!(row.kind.row().name, row.name);
        }
        // The last variant: with one more, this no longer compiles into the truth.
        assert_eq!(FaultKind::CrashAt as usize + 1, ROWS.len());
    }

    #[test]
    fn a_setting_out_of_its_range_is_refused_with_the_range() {
        let mut settings = FaultSettings::default();
        settings.set("loss", 0.5).unwrap();
        assert_eq!(
            settings.set("loss", 1.5).unwrap_err(),
            "loss is 1.5; it is a share from 0 to 1"
        );
        for row in ROWS {
            for name in row.settings.iter().filter(|name| !["file", "point"].contains(name)) {
                assert!(!settings.set(name, f64::NAN).unwrap_err().contains("no setting"));
            }
        }
    }

    #[test]
    fn rows_that_were_never_hit_are_counted_as_zero() {
        let counts = coverage(["kill", "kill", "pause"].into_iter());
        assert_eq!((counts["kill"], counts["pause"], counts["ring"]), (2, 1, 0));
        assert_eq!(counts.len(), ROWS.len());
    }
}
