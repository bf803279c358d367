//! How far the nodes of a topology are from each other.
//!
//! A topology only says it: whoever stands between the nodes (`chaos`) makes it so.

use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::topology::NodeSpec;

/// How long a message takes between two nodes, one way. Within a zone it takes no time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Between two zones of a region.
    pub zone: Delay,
    /// Between two regions.
    pub region: Delay,
}

/// How long one message takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// At least so long.
    pub least: Duration,
    /// And up to this much longer, evenly spread.
    pub jitter: Duration,
}

/// The longest delay and the longest jitter, in milliseconds: with more no leader is elected.
const MS_MAX: f64 = 1_000.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LatencyText {
    zone_ms: Option<Spanned<f64>>,
    zone_jitter_ms: Option<Spanned<f64>>,
    region_ms: Option<Spanned<f64>>,
    region_jitter_ms: Option<Spanned<f64>>,
}

impl Latency {
    /// Between two nodes, whichever way.
    pub fn between(&self, one: &NodeSpec, other: &NodeSpec) -> Delay {
        if one.region != other.region {
            self.region
        } else if one.zone != other.zone {
            self.zone
        } else {
            Delay::default()
        }
    }

    /// Whether every message takes no time.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl LatencyText {
    /// What it says, or what is wrong with it and where.
    pub(crate) fn check(&self) -> Result<Latency, (Range<usize>, String)> {
        Ok(Latency {
            zone: Delay {
                least: milliseconds("zone_ms", self.zone_ms.as_ref())?,
                jitter: milliseconds("zone_jitter_ms", self.zone_jitter_ms.as_ref())?,
            },
            region: Delay {
                least: milliseconds("region_ms", self.region_ms.as_ref())?,
                jitter: milliseconds("region_jitter_ms", self.region_jitter_ms.as_ref())?,
            },
        })
    }
}

fn milliseconds(
    name: &str,
    value: Option<&Spanned<f64>>,
) -> Result<Duration, (Range<usize>, String)> {
    let Some(value) = value else { return Ok(Duration::ZERO) };
    let number = *value.get_ref();
    if !(0.0..=MS_MAX).contains(&number) {
        let problem = format!("{name} is {number}; it is milliseconds from 0 to {MS_MAX}");
        return Err((value.span(), problem));
    }
    Ok(Duration::from_secs_f64(number / 1_000.0))
}
