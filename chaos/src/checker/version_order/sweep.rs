//! The sweep through real time: what was known before each moment.

use anchorhold_model::Version;

use super::Seen;

/// A version that was known from the end of an operation on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled<'a> {
    pub(super) seen: &'a Seen,
    pub(super) version: Version,
}

/// What an operation says of the versions known before a moment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Query {
    /// None of them is newer than this.
    NotBefore(Version),
    /// All of them are older than this.
    After(Version),
    /// There are none.
    Nothing,
}

/// Calls `wrong` for each query that is not true, with the newest version that was known.
///
/// A query's moment is given with it: only what ended before it is known.
pub(super) fn check<'a>(
    mut settled: Vec<Settled<'a>>,
    mut queries: Vec<(u64, Query, &'a Seen)>,
    mut wrong: impl FnMut(Query, &'a Seen, &Settled<'a>),
) {
    settled.sort_by_key(|one| one.seen.end_ns);
    queries.sort_by_key(|(at, _, _)| *at);
    let mut known = settled.into_iter().peekable();
    let mut newest: Option<Settled<'a>> = None;
    for (at, query, seen) in queries {
        while let Some(one) = known.next_if(|one| one.seen.end_ns < at) {
            if newest.is_none_or(|newest| newest.version < one.version) {
                newest = Some(one);
            }
        }
        let Some(newest) = &newest else { continue };
        let is_true = match query {
            Query::NotBefore(version) => newest.version <= version,
            Query::After(version) => newest.version < version,
            Query::Nothing => false,
        };
        if !is_true {
            wrong(query, seen, newest);
        }
    }
}
