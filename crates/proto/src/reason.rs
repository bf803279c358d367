//! The stable reasons of errors: what clients decide by.
//!
//! One table holds each reason's text on the wire, its gRPC code, the client's next move and its
//! explanation. The text never changes and is never used again for something else.

use std::fmt;

use tonic::Code;

/// The domain of every reason, as in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "anchorhold.dev";

/// What a client should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextMove {
    /// Send the same request again after a pause, a write with the same request id; any node.
    Retry,
    /// Learn the routes again, then send the same request again.
    RefreshRoutes,
    /// Read again, decide again, then send another request.
    Reread,
    /// Send something else, or ask the operator: the same request fails again.
    Change,
}

macro_rules! reasons {
    ($($variant:ident = $text:literal, $code:ident, $next:ident, $doc:literal;)+) => {
        /// Why a request, or an item of one, failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $doc] $variant,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its text on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The gRPC code that it always comes with.
            pub fn code(self) -> Code {
                match self {
                    $(Self::$variant => Code::$code,)+
                }
            }

            /// What a client should do about it.
            pub fn next_move(self) -> NextMove {
                match self {
                    $(Self::$variant => NextMove::$next,)+
                }
            }

            /// What it means, in a sentence or two.
            pub fn explanation(self) -> &'static str {
                match self {
                    $(Self::$variant => $doc,)+
                }
            }

            /// The reason with this text on the wire.
            pub fn from_wire(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    FieldInvalid = "FIELD_INVALID", InvalidArgument, Change,
        "A field is missing or its value is not allowed. The `BadRequest` detail names it.";
    PoseNotRigid = "POSE_NOT_RIGID", InvalidArgument, Change,
        "The orientation is not a unit quaternion within 0.001. Scale is not supported.";
    PropertiesTooLarge = "PROPERTIES_TOO_LARGE", InvalidArgument, Change,
        "Keys and values of the properties take more than 4,096 bytes together.";
    BatchTooLarge = "BATCH_TOO_LARGE", InvalidArgument, Change,
        "The request holds more items than allowed. Send several requests.";
    PageTokenInvalid = "PAGE_TOKEN_INVALID", InvalidArgument, Change,
        "The page token is damaged or was not made by this service.";
    PageTokenMismatch = "PAGE_TOKEN_MISMATCH", InvalidArgument, Change,
        "The page token belongs to another query. Only `page_size` and `read` may differ.";
    SessionTokenInvalid = "SESSION_TOKEN_INVALID", InvalidArgument, Change,
        "The session token is damaged or was not made by this service.";
    EtagInvalid = "ETAG_INVALID", InvalidArgument, Change,
        "The etag was not made by this service.";

    CredentialMissing = "CREDENTIAL_MISSING", Unauthenticated, Change,
        "The request has no `authorization: Bearer <key>` metadata.";
    CredentialInvalid = "CREDENTIAL_INVALID", Unauthenticated, Change,
        "The key is malformed, unknown or revoked.";
    PermissionDenied = "PERMISSION_DENIED", PermissionDenied, Change,
        "The key is valid but not for this: an account's key on the operators' services, or the \
         operators' key on an account's.";
    WrongAccount = "WRONG_ACCOUNT", PermissionDenied, Change,
        "The anchor id belongs to another account. Whether such an anchor exists is not told.";

    AnchorNotFound = "ANCHOR_NOT_FOUND", NotFound, Change,
        "There is no anchor with this id, or it has expired.";
    AccountNotFound = "ACCOUNT_NOT_FOUND", NotFound, Change,
        "There is no such account.";
    ApiKeyNotFound = "API_KEY_NOT_FOUND", NotFound, Change,
        "The account has no key with this id.";
    ClassNotFound = "CLASS_NOT_FOUND", NotFound, Change,
        "There is no such placement class.";
    NodeNotFound = "NODE_NOT_FOUND", NotFound, Change,
        "There is no such node.";
    ShardNotFound = "SHARD_NOT_FOUND", NotFound, Change,
        "There is no such shard.";

    RequestIdReused = "REQUEST_ID_REUSED", AlreadyExists, Change,
        "The request id was used for another write within the last 15 minutes. Make a new one for \
         each write.";
    AnchorExists = "ANCHOR_EXISTS", AlreadyExists, Change,
        "Another request made an anchor with the id that this one would get. Send it again with a \
         new request id.";
    AccountExists = "ACCOUNT_EXISTS", AlreadyExists, Change,
        "There is an account with this name.";

    EtagMismatch = "ETAG_MISMATCH", Aborted, Reread,
        "The anchor has changed since the etag was read. `current_etag` names its state now.";
    StaleEpoch = "STALE_EPOCH", Aborted, RefreshRoutes,
        "The shard's bounds or members changed while the request was on its way. Nothing was \
         written.";

    DriftTooFar = "DRIFT_TOO_FAR", FailedPrecondition, Change,
        "The new pose is too far from where the anchor was created. Create a new anchor there.";
    SpaceChanged = "SPACE_CHANGED", FailedPrecondition, Change,
        "The new pose lies in another space. Create a new anchor there.";
    AlreadyExpired = "ALREADY_EXPIRED", FailedPrecondition, Change,
        "The expiry lies in the past.";
    AccountNotEmpty = "ACCOUNT_NOT_EMPTY", FailedPrecondition, Change,
        "An account can be laid out only while it holds no anchors.";
    ShardBusy = "SHARD_BUSY", Aborted, Reread,
        "A change of the shard's members is under way, or one was made meanwhile.";
    MoveImpossible = "MOVE_IMPOSSIBLE", FailedPrecondition, Change,
        "The shard's members are not so that this move can be made.";
    SplitImpossible = "SPLIT_IMPOSSIBLE", FailedPrecondition, Change,
        "The shard cannot be split at this key, or holds too little to be split at all.";
    MergeImpossible = "MERGE_IMPOSSIBLE", FailedPrecondition, Change,
        "The shard has no left neighbour that it could become part of.";
    ApiKeysFull = "API_KEYS_FULL", FailedPrecondition, Change,
        "The account has two keys. Revoke one, or rotate.";
    WrongRegion = "WRONG_REGION", FailedPrecondition, Change,
        "The account's anchors must not leave its regions, and this node is outside. `endpoints` \
         names nodes inside.";
    SessionLost = "SESSION_LOST", FailedPrecondition, Change,
        "A shard was re-founded after the loss of its region, and what the session had seen may be \
         lost. Drop the token and read again.";

    NotLeader = "NOT_LEADER", Unavailable, Retry,
        "The node does not lead the shard and could not forward the request. `leader` names the \
         address of the leader if it is known. Nothing was written.";
    NoLeader = "NO_LEADER", Unavailable, Retry,
        "The shard has no leader at the moment. Elections take seconds. Nothing was written.";
    CommitUnknown = "COMMIT_UNKNOWN", Unavailable, Retry,
        "The write was proposed, but whether it was committed is not known. Send it again with the \
         same request id: it has one effect.";
    StalenessUnmet = "STALENESS_UNMET", Unavailable, Retry,
        "No replica within reach could be proven fresh enough for the read.";
    SessionBehind = "SESSION_BEHIND", Unavailable, Retry,
        "The replica has not yet reached what the session has seen.";
    Incomplete = "INCOMPLETE", Unavailable, Retry,
        "A shard did not answer, and the request asked for a complete answer.";
    ShardUnavailable = "SHARD_UNAVAILABLE", Unavailable, Retry,
        "No replica of the shard could be reached. Nothing was written.";
    CatalogUnavailable = "CATALOG_UNAVAILABLE", Unavailable, Retry,
        "The catalog has no leader within reach. Anchors are not affected.";
    NodeStarting = "NODE_STARTING", Unavailable, Retry,
        "The node is not ready yet.";
    NodeStopping = "NODE_STOPPING", Unavailable, Retry,
        "The node is shutting down. Use another one.";

    Overloaded = "OVERLOADED", ResourceExhausted, Retry,
        "Too much is in flight on the shard or the node. The `RetryInfo` detail says when to come \
         back. Nothing was written.";
    OperationsFull = "OPERATIONS_FULL", ResourceExhausted, Retry,
        "The shard remembers as many request ids as it may. It forgets them after 15 minutes. \
         Nothing was written.";
    DiskFull = "DISK_FULL", ResourceExhausted, Change,
        "The disks of the shard's nodes are full. Deletes still work.";

    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded, Change,
        "The request's time was over before anything was proposed. Nothing was written.";
    Unimplemented = "UNIMPLEMENTED", Unimplemented, Change,
        "This version does not offer what was asked.";
    Corrupted = "CORRUPTED", DataLoss, Change,
        "A replica found its data damaged and is being rebuilt.";
    Internal = "INTERNAL", Internal, Change,
        "A bug. The node's log has more.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_upper_snake_text_of_at_most_63_characters() {
        let texts: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(texts.len(), Reason::ALL.len());
        for text in texts {
            assert!(text.len() <= 63, "{text}");
            assert!(text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'), "{text}");
        }
    }

    #[test]
    fn every_reason_is_read_back_from_its_text() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_wire(reason.as_str()), Some(*reason));
        }
        assert_eq!(Reason::from_wire("SOMETHING_NEWER"), None);
    }

    #[test]
    fn only_codes_that_generic_clients_retry_are_marked_retry() {
        for reason in Reason::ALL {
            let retried = matches!(reason.code(), Code::Unavailable | Code::ResourceExhausted);
            assert!(retried || reason.next_move() != NextMove::Retry, "{reason}");
        }
    }
}
