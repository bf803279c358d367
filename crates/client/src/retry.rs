//! Decides what to do about a failed try.

use std::time::Duration;

use anchorhold_proto::failure::METADATA_LEADER;
use anchorhold_proto::{NextMove, Reason, ReceivedFailure};
use tonic::Code;

use crate::RetryConfig;

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// No connection: the request never left.
    NotSent,
    /// The connection broke, or time ran out: it may have been done.
    NoAnswer,
    /// The node answered.
    Answered,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Return the error.
    GiveUp,
    /// Send it again.
    Again {
        /// After this pause.
        pause: Duration,
        /// To this address, if the node named one.
        leader: Option<String>,
        /// Whether the node is to be passed over for a while.
        is_node_at_fault: bool,
        /// Whether the routes must be learnt again first.
        refresh: bool,
    },
}

/// What is known when a try has failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tries {
    /// How often the request was sent, at least 1.
    pub(crate) sent: u32,
    /// Pauses made so far.
    pub(crate) pauses: u32,
    /// Redirects in a row.
    pub(crate) redirects: u32,
    /// Nodes that are known.
    pub(crate) nodes: u32,
}

/// Redirects in a row that are followed without a pause: nodes that name each other must not be
/// hammered.
const REDIRECTS_MAX: u32 = 2;

/// Judges a failure. `jitter` is uniform in `[0, 1)`.
pub(crate) fn judge(
    failure: &ReceivedFailure,
    origin: Origin,
    tries: Tries,
    config: &RetryConfig,
    jitter: f64,
) -> Verdict {
    let again = |pause, is_node_at_fault, refresh| Verdict::Again {
        pause,
        leader: None,
        is_node_at_fault,
        refresh,
    };
    let pause = failure.retry_after.unwrap_or_else(|| backoff(tries.pauses, config, jitter));
    // Each node gets one quick try before anything is waited for.
    let quick = if tries.sent < tries.nodes { Duration::ZERO } else { pause };
    if origin != Origin::Answered {
        return again(quick, true, false);
    }
    match failure.reason {
        Some(Reason::NotLeader) => {
            let leader = failure.metadata.get(METADATA_LEADER).cloned();
            let is_quick = leader.is_some() && tries.redirects < REDIRECTS_MAX;
            let pause = if is_quick { Duration::ZERO } else { pause };
            Verdict::Again { pause, leader, is_node_at_fault: false, refresh: false }
        }
        Some(Reason::NodeStarting | Reason::NodeStopping) => again(quick, true, false),
        Some(reason) => match reason.next_move() {
            NextMove::Retry => again(pause, false, false),
            NextMove::RefreshRoutes => again(Duration::ZERO.max(quick), false, true),
            // A try's time is shorter than the call's.
            NextMove::Change if reason == Reason::DeadlineExceeded => again(quick, false, false),
            NextMove::Reread | NextMove::Change => Verdict::GiveUp,
        },
        // No reason of ours: a proxy, or the transport of the other side.
        None if matches!(failure.code, Code::Unavailable | Code::DeadlineExceeded) => {
            again(quick, true, false)
        }
        None => Verdict::GiveUp,
    }
}

/// The pause before the next try: doubling, and between half and all of that.
fn backoff(pauses: u32, config: &RetryConfig, jitter: f64) -> Duration {
    let doubled = config.pause_min.saturating_mul(1 << pauses.min(16));
    doubled.min(config.pause_max).mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use anchorhold_proto::Failure;
    use tonic::Status;

    use super::*;

    const FIRST: Tries = Tries { sent: 1, pauses: 0, redirects: 0, nodes: 1 };

    fn verdict(failure: Failure, tries: Tries) -> Verdict {
        let received = ReceivedFailure::of_status(&Status::from(failure));
        judge(&received, Origin::Answered, tries, &RetryConfig::default(), 0.5)
    }

    #[test]
    fn a_reason_that_no_retry_can_mend_is_returned_at_once() {
        for reason in Reason::ALL {
            let is_given_up = verdict(Failure::new(*reason, ""), FIRST) == Verdict::GiveUp;
            let is_hopeless = matches!(reason.next_move(), NextMove::Change | NextMove::Reread)
                && *reason != Reason::DeadlineExceeded;
            assert_eq!(is_given_up, is_hopeless, "{reason}");
        }
    }

    #[test]
    fn a_named_leader_is_asked_at_once_but_not_forever() {
        let failure = Failure::new(Reason::NotLeader, "").with(METADATA_LEADER, "10.0.0.1:7");
        let pause = |redirects| match verdict(failure.clone(), Tries { redirects, ..FIRST }) {
            Verdict::Again { pause, leader, .. } => {
                assert_eq!(leader.as_deref(), Some("10.0.0.1:7"));
                pause
            }
            Verdict::GiveUp => panic!("given up"),
        };
        assert_eq!(pause(0), Duration::ZERO);
        assert_eq!(pause(1), Duration::ZERO);
        assert!(Duration::ZERO < pause(2));
    }

    #[test]
    fn every_node_is_tried_before_the_first_pause() {
        let none = ReceivedFailure::of_status(&Status::unavailable("refused"));
        let pause = |sent| {
            let tries = Tries { sent, nodes: 3, ..FIRST };
            match judge(&none, Origin::NotSent, tries, &RetryConfig::default(), 0.0) {
                Verdict::Again { pause, is_node_at_fault, .. } => {
                    assert!(is_node_at_fault);
                    pause
                }
                Verdict::GiveUp => panic!("given up"),
            }
        };
        assert_eq!((pause(1), pause(2)), (Duration::ZERO, Duration::ZERO));
        assert!(Duration::ZERO < pause(3));
    }

    #[test]
    fn pauses_double_up_to_their_bound_and_vary() {
        let config = RetryConfig::default();
        assert_eq!(backoff(0, &config, 0.0), config.pause_min / 2);
        assert_eq!(backoff(1, &config, 0.0), config.pause_min);
        assert!(backoff(40, &config, 0.999) <= config.pause_max);
        assert_eq!(backoff(40, &config, 0.0), config.pause_max / 2);
    }

    #[test]
    fn a_node_that_says_when_to_come_back_is_obeyed() {
        let later = Duration::from_secs(3);
        let failure = Failure::new(Reason::Overloaded, "").retry_after(later);
        let verdict = verdict(failure, FIRST);
        let is_obeyed = matches!(
            verdict,
            Verdict::Again { pause, is_node_at_fault: false, .. } if pause == later
        );
        assert!(is_obeyed, "{verdict:?}");
    }

    #[test]
    fn a_stale_epoch_refreshes_the_routes() {
        let verdict = verdict(Failure::new(Reason::StaleEpoch, ""), FIRST);
        assert!(matches!(verdict, Verdict::Again { refresh: true, .. }), "{verdict:?}");
    }
}
