use serde::{Deserialize, Serialize};

/// A length in meters. Finite, never negative.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Meters(f64);

impl Meters {
    /// No length at all.
    pub const ZERO: Self = Self(0.0);

    /// Returns `None` unless `value` is finite and `0 <= value`.
    pub fn new(value: f64) -> Option<Self> {
        (value.is_finite() && 0.0 <= value).then_some(Self(value))
    }

    /// The length as a number of meters.
    pub fn get(self) -> f64 {
        self.0
    }
}
