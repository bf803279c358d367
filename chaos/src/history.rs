//! Operations as they were seen by the clients, on disk.
//!
//! One file a workload: a header, then one record for each thing that a client learnt. A write of
//! unknown outcome has a record when it became unknown, and a second one under the same request id
//! when its outcome was found out. Records stand in the order in which they were learnt, so times
//! are not sorted by start.
//!
//! Not here: what the operations prove (`checker`).

mod operation;
mod reader;
mod recorder;

pub use self::operation::{
    Action, Level, Operation, Outcome, Position, Row, Served, UNWRITTEN_REASONS, value_of,
};
pub use self::reader::{End, HistoryReader};
pub use self::recorder::{Header, Recorder};
