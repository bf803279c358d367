//! Liveness: once everything has healed, the cluster founds, elects, answers and catches up, each
//! within its time.

use std::time::Duration;

/// From the first start until the account is made and every shard leads.
pub const FOUNDED_WITHIN: Duration = Duration::from_secs(60);
/// From the heal until every write is answered for good and every anchor is read back.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(40);
/// From there until all replicas of a shard have applied the same index.
pub const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// Judges how long something takes that must end.
///
/// # Errors
/// If it has taken too long.
pub fn check(what: &str, taken: Duration, within: Duration) -> Result<(), String> {
    if taken <= within {
        return Ok(());
    }
    Err(format!("liveness: {what} has taken longer than {within:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_too_long_is_found() {
        check("it", ANSWERED_WITHIN, ANSWERED_WITHIN).unwrap();
        check("it", ANSWERED_WITHIN + Duration::from_millis(1), ANSWERED_WITHIN).unwrap_err();
    }
}
