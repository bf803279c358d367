//! Waiting for what must come true, without sleeping for a guessed time.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long anything may take on a busy machine. Not a claim about speed: only a broken cluster
/// reaches it.
pub const LIVENESS_MAX: Duration = Duration::from_secs(60);

/// Looks until `look` returns a value.
///
/// # Panics
/// With what `look` said last, if nothing came in [`LIVENESS_MAX`].
pub async fn until<T, E: Debug, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let mut last = String::from("nothing yet");
    let looking = async {
        loop {
            match look().await {
                Ok(value) => return value,
                Err(error) => last = format!("{error:?}"),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let found = tokio::time::timeout(LIVENESS_MAX, looking).await;
    found.unwrap_or_else(|_| panic!("{what} did not come true: {last}"))
}
