//! Naming a process so that it cannot be mistaken for another.
//!
//! Process ids are reused. A process is therefore named by its id, its start time and the boot
//! that it runs in, and it is signalled through a handle that was opened before the check: between
//! check and signal the id cannot come to mean another process.

use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// One process of this machine, now or earlier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// Its process id.
    pub pid: u32,
    /// When it was started: opaque, equal only for the same process.
    pub started: String,
}

/// The number of the user that this process runs as.
pub fn user_id() -> u32 {
    rustix::process::getuid().as_raw()
}

/// What came of a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// The process got the signal.
    Signalled,
    /// It had ended before; nothing was signalled.
    AlreadyGone,
}

impl ProcessIdentity {
    /// The process that has this id now; `None` if there is none, or if it has ended and only
    /// waits to be reaped.
    pub fn of(pid: u32) -> Option<Self> {
        platform::started(pid).map(|started| Self { pid, started })
    }

    /// This very process.
    pub fn current() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether this process still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Processor time that this process has used, user and system; `None` if it does not run, or
    /// where the system does not tell.
    pub fn cpu_time(&self) -> Option<Duration> {
        if !self.is_alive() {
            return None;
        }
        platform::cpu_time(self.pid)
    }

    /// Memory of this process that is not swapped out, in bytes; `None` if it does not run, or where
    /// the system does not tell.
    pub fn resident_bytes(&self) -> Option<u64> {
        if !self.is_alive() {
            return None;
        }
        platform::resident_bytes(self.pid)
    }

    /// Sends SIGKILL to this process and to no other.
    ///
    /// # Errors
    /// If the system refuses, for instance because the process belongs to someone else.
    pub fn kill(&self) -> io::Result<Killed> {
        self.signal(Signal::KILL)
    }

    /// Freezes this process and no other, until [`Self::resume`].
    ///
    /// # Errors
    /// If the system refuses.
    pub fn pause(&self) -> io::Result<Killed> {
        self.signal(Signal::STOP)
    }

    /// Lets this process go on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn resume(&self) -> io::Result<Killed> {
        self.signal(Signal::CONT)
    }

    /// Whether this process is frozen.
    pub fn is_paused(&self) -> bool {
        self.is_alive() && platform::is_paused(self.pid)
    }

    fn signal(&self, signal: Signal) -> io::Result<Killed> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(Killed::AlreadyGone) };
        match platform::signal_if(pid, signal, || self.is_alive()) {
            Ok(killed) => Ok(killed),
            Err(rustix::io::Errno::SRCH) => Ok(Killed::AlreadyGone),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

    use super::{Duration, Killed, Pid, Signal};

    pub(super) fn cpu_time(pid: u32) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks = super::cpu_ticks(&stat)?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_millis(ticks * 1_000 / per_second))
    }

    pub(super) fn resident_bytes(pid: u32) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        // In pages: proc(5).
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    pub(super) fn is_paused(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with(['T', 't']))
    }

    pub(super) fn started(pid: u32) -> Option<String> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks = super::start_ticks(&stat)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(format!("{}:{ticks}", boot.trim()))
    }

    pub(super) fn signal_if(
        pid: Pid,
        signal: Signal,
        check: impl Fn() -> bool,
    ) -> rustix::io::Result<Killed> {
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        if !check() {
            return Ok(Killed::AlreadyGone);
        }
        pidfd_send_signal(handle, signal)?;
        Ok(Killed::Signalled)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::process::Command;

    use super::{Duration, Killed, Pid, Signal};

    pub(super) fn cpu_time(_pid: u32) -> Option<Duration> {
        None
    }

    pub(super) fn resident_bytes(_pid: u32) -> Option<u64> {
        None
    }

    pub(super) fn is_paused(pid: u32) -> bool {
        let ps = Command::new("ps").args(["-o", "state=", "-p", &pid.to_string()]).output();
        ps.is_ok_and(|ps| ps.stdout.trim_ascii_start().starts_with(b"T"))
    }

    pub(super) fn started(pid: u32) -> Option<String> {
        let pid = pid.to_string();
        let ps = Command::new("ps").args(["-o", "lstart=,state=", "-p", &pid]).output().ok()?;
        let text = String::from_utf8(ps.stdout).ok()?;
        let (started, state) = text.trim().rsplit_once(char::is_whitespace)?;
        (ps.status.success() && !state.starts_with('Z')).then(|| started.trim().to_owned())
    }

    /// Without a handle a moment is left between check and signal.
    pub(super) fn signal_if(
        pid: Pid,
        signal: Signal,
        check: impl Fn() -> bool,
    ) -> rustix::io::Result<Killed> {
        if !check() {
            return Ok(Killed::AlreadyGone);
        }
        rustix::process::kill_process(pid, signal)?;
        Ok(Killed::Signalled)
    }
}

/// Start time, in clock ticks since boot, out of `/proc/<pid>/stat`; `None` for a zombie.
///
/// The command's name stands in parentheses and may itself hold blanks and parentheses, so fields
/// are counted from the last one: the state is field 3, the start time field 22 (proc(5)).
#[cfg(any(target_os = "linux", test))]
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// User and system time, in clock ticks: fields 14 and 15.
#[cfg(any(target_os = "linux", test))]
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that waits on its standard input.
    fn waiting_child() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat runs")
    }

    #[test]
    fn start_time_is_found_behind_a_hostile_command_name() {
        let stat = "7 (a) R (b c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks(&stat.replace(") S", ") Z")), None);
        assert_eq!(start_ticks("7 (cat"), None);
        assert_eq!(cpu_ticks(stat), Some(5 + 6));
    }

    #[test]
    fn a_process_that_is_the_one_named_is_killed() {
        let mut child = waiting_child();
        let identity = ProcessIdentity::of(child.id()).expect("it runs");
        assert!(identity.is_alive());
        assert_eq!(identity.kill().expect("allowed"), Killed::Signalled);
        assert!(!child.wait().expect("reaped").success());
        assert!(!identity.is_alive());
        assert_eq!(identity.kill().expect("allowed"), Killed::AlreadyGone);
    }

    #[test]
    fn a_paused_process_is_frozen_until_it_is_resumed() {
        let mut child = waiting_child();
        let identity = ProcessIdentity::of(child.id()).expect("it runs");
        assert!(!identity.is_paused());
        identity.pause().expect("allowed");
        while !identity.is_paused() {
            std::thread::yield_now();
        }
        drop(child.stdin.take());
        assert!(child.try_wait().expect("asked").is_none(), "it went on");
        identity.resume().expect("allowed");
        assert!(child.wait().expect("reaped").success());
    }

    #[test]
    fn a_process_that_only_took_over_the_id_is_left_alone() {
        let mut child = waiting_child();
        let mut identity = ProcessIdentity::of(child.id()).expect("it runs");
        identity.started.push('0');
        assert!(!identity.is_alive());
        assert_eq!(identity.kill().expect("allowed"), Killed::AlreadyGone);
        assert!(child.try_wait().expect("asked").is_none(), "the other process was killed");
        drop(child.stdin.take());
        assert!(child.wait().expect("reaped").success());
    }

    #[test]
    fn an_id_out_of_range_is_nobody() {
        let identity = ProcessIdentity { pid: u32::MAX, started: String::new() };
        assert_eq!(identity.kill().expect("allowed"), Killed::AlreadyGone);
        let zero = ProcessIdentity { pid: 0, started: String::new() };
        assert_eq!(zero.kill().expect("allowed"), Killed::AlreadyGone);
    }
}
