//! The nearest anchors by looking at every anchor there is.
//!
//! Distances are straight lines between WGS84 positions in ECEF meters, computed here and not by the
//! store's code: an error there must not excuse itself.

use std::collections::HashSet;

use super::{Asked, Evidence, Life, Lives, impossible};
use crate::checker::Findings;
use crate::checker::version_order::id_text;
use crate::history::{Position, Row};
use crate::judge::Invariant;

/// Distances that differ by less may be ordered either way, in meters.
const TOLERANCE_M: f64 = 0.001;

/// Holds one answer against all anchors.
pub(super) fn check(lives: &Lives, asked: &Asked, findings: &mut Findings) {
    findings.check(Invariant::NearestExact, 1);
    let from = ecef_m(asked.position);
    let show = |text: String| {
        let Position { latitude_deg, longitude_deg, .. } = asked.position;
        let rows = asked.rows.len();
        asked.during.evidence(format!(
            "the {} nearest to {latitude_deg:.6}, {longitude_deg:.6}: {rows} found; {text}",
            asked.k
        ))
    };
    let mut found = HashSet::new();
    for Row { id, value, distance_m, .. } in &asked.rows {
        if !found.insert(*id) {
            findings.violate(
                Invariant::NearestExact,
                || format!("an answer holds anchor {} twice", id_text(*id)),
                || vec![show(id_text(*id))],
            );
        }
        if let Some((life, problem)) = impossible(lives, *id, *value, asked.during) {
            let (invariant, text) = problem.told();
            findings.violate(
                invariant,
                || format!("an answer holds anchor {}, {text}", id_text(*id)),
                || with(life, show(id_text(*id))),
            );
            continue;
        }
        let Some(life) = lives.of_value(*value) else { continue };
        let true_m = distance(from, ecef_m(life.position));
        let is_right = (true_m - distance_m).abs() <= TOLERANCE_M;
        if !is_right {
            findings.violate(
                Invariant::NearestExact,
                || {
                    format!(
                        "anchor {} is {true_m:.3} m away and not {distance_m:.3} m",
                        id_text(*id)
                    )
                },
                || with(Some(life), show(id_text(*id))),
            );
        }
    }
    let is_sorted = asked.rows.is_sorted_by(|a, b| a.distance_m <= b.distance_m + TOLERANCE_M);
    if !is_sorted {
        findings.violate(
            Invariant::NearestExact,
            || "an answer is not ordered by distance".to_owned(),
            || vec![show(String::new())],
        );
    }
    if asked.complete {
        check_misses(lives, asked, from, &found, &show, findings);
    }
}

/// Everything that was there throughout and is nearer than the farthest of a full answer is in it.
fn check_misses(
    lives: &Lives,
    asked: &Asked,
    from: [f64; 3],
    found: &HashSet<u128>,
    show: &impl Fn(String) -> Evidence,
    findings: &mut Findings,
) {
    let is_full = asked.k as usize <= asked.rows.len();
    let farthest = asked.rows.last().filter(|_| is_full);
    let within_m = farthest.map_or(f64::INFINITY, |row| row.distance_m - TOLERANCE_M);
    for (id, life) in lives.acknowledged() {
        let away_m = distance(from, ecef_m(life.position));
        if away_m < within_m && !found.contains(&id) && life.must_be_there(asked.during) {
            findings.violate(
                Invariant::NearestExact,
                || format!("an answer leaves out anchor {}, {away_m:.3} m away, where the farthest one in it is {:.3} m away", id_text(id), asked.rows.last().map_or(0.0, |row| row.distance_m)),
                || with(Some(life), show(format!("without {}", id_text(id)))),
            );
        }
    }
}

fn with(life: Option<&Life>, last: Evidence) -> Vec<Evidence> {
    life.map(Life::evidence).into_iter().flatten().chain([last]).collect()
}

/// Earth-centered, earth-fixed coordinates in meters.
///
/// Source: WGS84, a = 6,378,137 m, f = 1 / 298.257223563; closed form from geodetic coordinates.
pub(super) fn ecef_m(position: Position) -> [f64; 3] {
    const A_M: f64 = 6_378_137.0;
    const F: f64 = 1.0 / 298.257_223_563;
    const E2: f64 = F * (2.0 - F);
    let (latitude, longitude) =
        (position.latitude_deg.to_radians(), position.longitude_deg.to_radians());
    let normal_m = A_M / (1.0 - E2 * latitude.sin().powi(2)).sqrt();
    let from_axis_m = (normal_m + position.height_m) * latitude.cos();
    [
        from_axis_m * longitude.cos(),
        from_axis_m * longitude.sin(),
        (normal_m * (1.0 - E2) + position.height_m) * latitude.sin(),
    ]
}

/// Straight-line distance.
pub(super) fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}
