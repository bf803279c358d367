//! The drawings: the run's timeline, and the operations of one violation.

use std::fmt::Write as _;

use super::text::{duration, escaped, moment};
use super::{FaultResult, Report, Second};
use crate::checker::Evidence;

/// Widths and heights in user units; the page scales the whole drawing.
const WIDTH: f64 = 1_100.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 10.0;
const ROW: f64 = 92.0;
const ROW_GAP: f64 = 30.0;
const TOP: f64 = 44.0;
/// Points that a curve has, at most: longer runs are drawn more coarsely.
const POINTS_MAX: usize = 600;
/// Classes of colours for zones, in turn: first those that no other curve has.
pub(super) const COLOURS: [&str; 6] = ["c", "d", "e", "a", "f", "b"];

/// The run second by second, with bands where faults were.
pub(super) fn timeline(report: &Report) -> String {
    let zones = zones(report);
    let plot = Plot::new(report);
    let rows: [(&str, String); 5] = [
        ("operations per second", plot.throughput()),
        ("time of an operation (log)", plot.latency()),
        ("failed or unanswered per second", plot.bars(|second| f64::from(second.errors), "f-bad")),
        ("leaders by zone", plot.leaders(&zones)),
        ("replicas missing; shards without a leader", plot.missing()),
    ];
    let height = TOP + rows.len() as f64 * (ROW + ROW_GAP) + 8.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"Timeline of the run\">"
    );
    plot.bands(&mut svg, &report.faults, height);
    for phase in &report.phases {
        let x = plot.x(phase.begin_ns as f64 / 1e9);
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<line class=\"phase\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"><title>{} begins; 99 of 100 of its writes took at most {}</title></line>",
            height - ROW_GAP,
            escaped(&phase.name),
            duration(phase.write_p99_ms)
        );
    }
    for (number, (name, drawing)) in rows.iter().enumerate() {
        let y = TOP + number as f64 * (ROW + ROW_GAP) + 14.0;
        let _ = write!(
            svg,
            "<g transform=\"translate(0 {y:.1})\"><text class=\"name\" x=\"{LEFT}\" y=\"-4\">{name}</text>{drawing}</g>"
        );
    }
    plot.time_axis(&mut svg, height - 8.0);
    svg.push_str("</svg>");
    svg
}

/// The zones that ever led a shard.
pub(super) fn zones(report: &Report) -> Vec<String> {
    let mut zones: Vec<String> = Vec::new();
    for second in &report.timeline {
        for (zone, _) in &second.leaders {
            if !zones.contains(zone) {
                zones.push(zone.clone());
            }
        }
    }
    zones.sort();
    zones
}

struct Plot {
    /// Seconds, put together where there are too many.
    points: Vec<Second>,
    seconds_per_point: f64,
    seconds: f64,
}

impl Plot {
    fn new(report: &Report) -> Self {
        let per = report.timeline.len().div_ceil(POINTS_MAX).max(1);
        let points: Vec<Second> =
            report.timeline.chunks(per).map(|some| joined(some, per)).collect();
        let seconds = report.timeline.len().max(1) as f64;
        Self { points, seconds_per_point: per as f64, seconds }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (seconds / self.seconds).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// A curve through `value` of each point, in steps; `scale` maps values to `[0, 1]`.
    fn steps(
        &self,
        class: &str,
        value: impl Fn(&Second) -> f64,
        scale: impl Fn(f64) -> f64,
    ) -> String {
        let mut path = String::new();
        let mut is_down = false;
        for (index, point) in self.points.iter().enumerate() {
            let value = value(point);
            if value.is_nan() {
                is_down = false;
                continue;
            }
            let y = ROW * (1.0 - scale(value).clamp(0.0, 1.0));
            let from = self.x(index as f64 * self.seconds_per_point);
            let to = self.x((index + 1) as f64 * self.seconds_per_point);
            let letter = if is_down { 'L' } else { 'M' };
            let _ = write!(path, "{letter}{from:.1} {y:.1}H{to:.1}");
            is_down = true;
        }
        format!("<path class=\"{class}\" d=\"{path}\"/>")
    }

    /// Stacked areas in steps.
    fn stack(&self, layers: &[(String, Vec<f64>)], most: f64) -> String {
        let mut svg = String::new();
        let mut below = vec![0.0; self.points.len()];
        for (class, values) in layers {
            let mut path = String::new();
            for (index, value) in values.iter().enumerate().filter(|(_, value)| 0.0 < **value) {
                let from = self.x(index as f64 * self.seconds_per_point);
                let to = self.x((index + 1) as f64 * self.seconds_per_point);
                let low = ROW * (1.0 - below[index] / most);
                let high = ROW * (1.0 - (below[index] + value) / most);
                let _ = write!(path, "M{from:.1} {low:.1}V{high:.1}H{to:.1}V{low:.1}Z");
                below[index] += value;
            }
            let _ = write!(svg, "<path class=\"{class}\" d=\"{path}\"/>");
        }
        svg
    }

    fn throughput(&self) -> String {
        let of = |value: fn(&Second) -> u32| -> Vec<f64> {
            self.points.iter().map(|point| f64::from(value(point))).collect()
        };
        let (writes, reads) = (of(|point| point.writes), of(|point| point.reads));
        let sums = writes.iter().zip(&reads).map(|(a, b)| a + b);
        let most = nice(sums.fold(1.0, f64::max));
        let layers = [("f-a".to_owned(), writes), ("f-f".to_owned(), reads)];
        grid(&[0.0, 0.5, 1.0], |share| count(share * most)) + &self.stack(&layers, most)
    }

    fn latency(&self) -> String {
        let most = self.points.iter().map(|point| point.p99_ms).fold(1.0, f64::max);
        let top = most.log10().ceil().max(1.0);
        let scale = move |ms: f64| (ms.max(0.1).log10() + 1.0) / (top + 1.0);
        let value = |of: fn(&Second) -> f64| {
            move |point: &Second| if point.writes + point.reads == 0 { f64::NAN } else { of(point) }
        };
        let mut lines = Vec::new();
        let mut decade = -1.0;
        while decade <= top {
            lines.push((decade + 1.0) / (top + 1.0));
            decade += 1.0;
        }
        grid(&lines, |share| duration(10_f64.powf(share * (top + 1.0) - 1.0)))
            + &self.steps("l-a", value(|point| point.p50_ms), scale)
            + &self.steps("l-b", value(|point| point.p99_ms), scale)
    }

    fn bars(&self, value: fn(&Second) -> f64, class: &str) -> String {
        let values: Vec<f64> = self.points.iter().map(value).collect();
        let most = nice(values.iter().copied().fold(1.0, f64::max));
        grid(&[0.0, 1.0], |share| count(share * most))
            + &self.stack(&[(class.to_owned(), values)], most)
    }

    fn leaders(&self, zones: &[String]) -> String {
        let of = |point: &Second, zone: &str| {
            let found = point.leaders.iter().find(|(name, _)| name == zone);
            found.map_or(0.0, |(_, count)| f64::from(*count))
        };
        let layers: Vec<(String, Vec<f64>)> = zones
            .iter()
            .enumerate()
            .map(|(index, zone)| {
                let class = format!("f-{}", COLOURS[index % COLOURS.len()]);
                (class, self.points.iter().map(|point| of(point, zone)).collect())
            })
            .collect();
        let sum = |index: usize| layers.iter().map(|(_, values)| values[index]).sum::<f64>();
        let most = (0..self.points.len()).map(sum).fold(1.0, f64::max);
        grid(&[0.0, 1.0], |share| count(share * most)) + &self.stack(&layers, most)
    }

    fn missing(&self) -> String {
        let missing = |point: &Second| f64::from(point.missing);
        let leaderless = |point: &Second| f64::from(point.leaderless);
        let values = self.points.iter().map(|point| missing(point).max(leaderless(point)));
        let most = nice(values.fold(1.0, f64::max));
        let layer: Vec<f64> = self.points.iter().map(missing).collect();
        grid(&[0.0, 1.0], |share| count(share * most))
            + &self.stack(&[("f-b".to_owned(), layer)], most)
            + &self
                .stack(&[("f-bad".to_owned(), self.points.iter().map(leaderless).collect())], most)
    }

    fn bands(&self, svg: &mut String, faults: &[FaultResult], height: f64) {
        let mut last_label = f64::NEG_INFINITY;
        for fault in faults {
            let from = self.x(fault.applied_ns.unwrap_or(fault.asked_ns) as f64 / 1e9);
            let healed = fault.healed_ns.map_or(self.seconds, |ns| ns as f64 / 1e9);
            let to = self.x(healed).max(from + 1.5);
            let (width, bottom) = (to - from, height - ROW_GAP);
            let title = escaped(&format!(
                "{} {}: {} to {}",
                fault.fault,
                fault.target,
                moment(fault.asked_ns),
                fault.healed_ns.map_or("the end".to_owned(), moment)
            ));
            let _ = write!(
                svg,
                "<g><title>{title}</title><rect class=\"band\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{:.1}\"/><line class=\"band-edge\" x1=\"{from:.1}\" x2=\"{from:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/></g>",
                bottom - TOP,
                TOP - 10.0
            );
            // A label only where there is room for it: the bands name themselves when pointed at.
            let label = format!("{} {}", fault.fault, fault.target);
            let needed = label.chars().count() as f64 * 5.9 + 14.0;
            let is_free = last_label <= from && from + needed <= WIDTH;
            if is_free {
                let _ = write!(
                    svg,
                    "<text class=\"band-name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    from + 4.0,
                    TOP - 4.0,
                    escaped(&label)
                );
                last_label = from + needed;
            }
        }
    }

    fn time_axis(&self, svg: &mut String, y: f64) {
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0]
            .into_iter()
            .find(|step| self.seconds / step <= 12.0)
            .unwrap_or(7_200.0);
        let mut at = 0.0;
        while at <= self.seconds {
            let anchor = match self.x(at) {
                _ if at == 0.0 => "start",
                x if WIDTH - 24.0 < x => "end",
                _ => "middle",
            };
            let text = if 120.0 <= self.seconds {
                format!("{:.0}:{:02.0}", (at / 60.0).floor(), at % 60.0)
            } else {
                format!("{at:.0} s")
            };
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>",
                self.x(at)
            );
            at += step;
        }
    }
}

/// Several seconds as one: rates as means, times and counts at their worst.
fn joined(seconds: &[Second], per: usize) -> Second {
    let Some(last) = seconds.last() else { return Second::default() };
    let mean = |value: fn(&Second) -> u32| {
        let sum: u64 = seconds.iter().map(|second| u64::from(value(second))).sum();
        u32::try_from(sum.div_ceil(per as u64)).unwrap_or(u32::MAX)
    };
    let worst = |value: fn(&Second) -> f64| seconds.iter().map(value).fold(0.0, f64::max);
    Second {
        writes: mean(|second| second.writes),
        reads: mean(|second| second.reads),
        errors: mean(|second| second.errors),
        p50_ms: worst(|second| second.p50_ms),
        p99_ms: worst(|second| second.p99_ms),
        leaders: last.leaders.clone(),
        leaderless: seconds.iter().map(|second| second.leaderless).max().unwrap_or_default(),
        missing: seconds.iter().map(|second| second.missing).max().unwrap_or_default(),
        lateness_ms: worst(|second| second.lateness_ms),
    }
}

/// Lines across a row, with their values at the left.
fn grid(shares: &[f64], label: impl Fn(f64) -> String) -> String {
    let mut svg = String::new();
    for share in shares {
        let y = ROW * (1.0 - share);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            label(*share)
        );
    }
    svg
}

fn count(value: f64) -> String {
    match value {
        value if 10_000.0 <= value => format!("{:.0}k", value / 1_000.0),
        value if value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

/// The next round number.
fn nice(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let factor = [1.0, 2.0, 4.0, 5.0, 10.0].into_iter().find(|factor| value <= factor * decade);
    factor.unwrap_or(10.0) * decade
}

/// The operations of a violation as bars over time, one lane each.
pub(super) fn operations(evidence: &[Evidence]) -> String {
    const LANE: f64 = 26.0;
    let start = evidence.iter().map(|one| one.start_ns).min().unwrap_or_default();
    let end = evidence.iter().map(|one| one.end_ns).max().unwrap_or_default();
    let span = (end - start).max(1) as f64;
    let x = |ns: u64| LEFT + (ns - start) as f64 / span * (WIDTH - LEFT - RIGHT);
    let height = evidence.len() as f64 * LANE + 24.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"Operations over time\">"
    );
    for (lane, one) in evidence.iter().enumerate() {
        let y = lane as f64 * LANE + 4.0;
        let (from, to) = (x(one.start_ns), x(one.end_ns).max(x(one.start_ns) + 3.0));
        let who = one.client.map_or("read back".to_owned(), client_name);
        // The text begins at the bar if there is room, and ends at it otherwise.
        let needed = one.text.chars().count() as f64 * 5.8;
        let (text_x, anchor) = if to + needed + 8.0 <= WIDTH {
            (to + 6.0, "start")
        } else if LEFT + needed + 8.0 <= from {
            (from - 6.0, "end")
        } else {
            (LEFT + 4.0, "start")
        };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect class=\"f-a\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"14\" rx=\"3\"/><text class=\"name\" style=\"font-weight:400\" x=\"{text_x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            LEFT - 6.0,
            y + 11.0,
            escaped(&who),
            to - from,
            y + 11.0,
            escaped(&one.text)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\">{}</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text></svg>",
        height - 6.0,
        moment(start),
        WIDTH - RIGHT,
        height - 6.0,
        moment(end)
    );
    svg
}

/// How a client is called: the one that prepares and the one that reads back have no number.
pub(super) fn client_name(client: u32) -> String {
    if client == u32::MAX { "harness".to_owned() } else { format!("client {client}") }
}
