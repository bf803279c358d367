//! Brute force over anchors as their creators know them: an independent second opinion.

use std::f64::consts::PI;

use anchorhold_proto::v1;

/// Distances that differ by less than this many meters count as equal: two right formulas round
/// differently.
pub(crate) const TOLERANCE_M: f64 = 1e-3;

/// WGS84 degrees and meters to earth-centered, earth-fixed meters.
///
/// Source: EPSG Guidance Note 7-2, section 4.1.1 (method 9602).
pub(crate) fn ecef(latitude_deg: f64, longitude_deg: f64, height_m: f64) -> [f64; 3] {
    const SEMI_MAJOR_M: f64 = 6_378_137.0;
    const FLATTENING: f64 = 1.0 / 298.257_223_563;
    let eccentricity2 = FLATTENING * (2.0 - FLATTENING);
    let (sin_lat, cos_lat) = (latitude_deg * PI / 180.0).sin_cos();
    let (sin_lon, cos_lon) = (longitude_deg * PI / 180.0).sin_cos();
    let normal = SEMI_MAJOR_M / (1.0 - eccentricity2 * sin_lat * sin_lat).sqrt();
    [
        (normal + height_m) * cos_lat * cos_lon,
        (normal + height_m) * cos_lat * sin_lon,
        (normal * (1.0 - eccentricity2) + height_m) * sin_lat,
    ]
}

/// The place of a geodetic anchor.
pub(crate) fn place(anchor: &v1::Anchor) -> (f64, f64, f64) {
    let Some(v1::pose::Frame::Geo(geo)) = anchor.pose.as_ref().and_then(|pose| pose.frame.as_ref())
    else {
        panic!("not on Earth: {anchor:?}")
    };
    (geo.latitude_deg, geo.longitude_deg, geo.height_m)
}

pub(crate) fn distance(anchor: &v1::Anchor, point: [f64; 3]) -> f64 {
    let (latitude, longitude, height) = place(anchor);
    let here = ecef(latitude, longitude, height);
    (0..3).map(|axis| (here[axis] - point[axis]).powi(2)).sum::<f64>().sqrt()
}

/// All anchors by distance, then id.
pub(crate) fn by_distance(anchors: &[v1::Anchor], point: [f64; 3]) -> Vec<(f64, &v1::Anchor)> {
    let mut all: Vec<_> = anchors.iter().map(|anchor| (distance(anchor, point), anchor)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
    all
}

/// Compares an answer of nearest anchors with brute force.
///
/// The answer must be as long as possible, hold true distances in rising order, name nobody twice,
/// and leave out nobody who is clearly nearer than its last.
#[track_caller]
pub(crate) fn check_nearest(
    label: &str,
    anchors: &[v1::Anchor],
    point: [f64; 3],
    k: usize,
    radius_m: f64,
    answer: &[v1::LocatedAnchor],
) {
    let truth: Vec<_> = by_distance(anchors, point)
        .into_iter()
        .filter(|(distance, _)| *distance <= radius_m)
        .collect();
    let border = |distance: f64| (distance - radius_m).abs() < TOLERANCE_M;
    let (least, most) = (
        truth.iter().filter(|(distance, _)| !border(*distance)).count().min(k),
        by_distance(anchors, point)
            .iter()
            .filter(|(distance, _)| *distance <= radius_m || border(*distance))
            .count()
            .min(k),
    );
    assert!((least..=most).contains(&answer.len()), "{label}: {} of {least}", answer.len());
    let mut last = (0.0, String::new());
    for (rank, located) in answer.iter().enumerate() {
        let anchor = located.anchor.as_ref().expect("an anchor");
        let stated = located.distance_m.expect("a distance");
        assert!(anchors.contains(anchor), "{label}: {anchor:?} was never stored like that");
        let true_distance = distance(anchor, point);
        let error = (stated - true_distance).abs();
        assert!(error < TOLERANCE_M, "{label}: {stated} m is {true_distance} m");
        assert!(last.0 <= stated, "{label}: rank {rank} is out of order");
        assert!(last.0 < stated || last.1 < anchor.id, "{label}: rank {rank}: ties go by id");
        // Whoever is at this rank in truth is as near as whoever the answer has there.
        let expected = truth.get(rank).map_or(true_distance, |(distance, _)| *distance);
        assert!(
            (stated - expected).abs() < TOLERANCE_M,
            "{label}: rank {rank}: {stated} m, not {expected} m"
        );
        last = (stated, anchor.id.clone());
    }
}

#[test]
fn the_formula_agrees_with_known_points() {
    let close = |a: [f64; 3], b: [f64; 3]| (0..3).all(|axis| (a[axis] - b[axis]).abs() < 0.01);
    assert!(close(ecef(0.0, 0.0, 0.0), [6_378_137.0, 0.0, 0.0]));
    assert!(close(ecef(90.0, 0.0, 0.0), [0.0, 0.0, 6_356_752.314]));
    // EPSG Guidance Note 7-2, the example of method 9602.
    let known = [3_771_793.968, 140_253.342, 5_124_304.349];
    assert!(
        close(ecef(53.809_394_44, 2.129_550_0, 73.0), known),
        "{:?}",
        ecef(53.809_394_44, 2.129_55, 73.0)
    );
}
