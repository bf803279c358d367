//! Measures the position index: build, queries, updates, memory.
//!
//! `cargo run --release -p anchorhold-localization --example forest_throughput [-- POSITIONS]`
//!
//! All times are CPU time of this thread (Linux `/proc/thread-self/schedstat`), so other load on
//! the machine costs cache, not time. Positions are a city: clusters of 15 m, 8 floors, 10 km
//! square; queries fall near a stored position; ids sort by place, as anchor ids do. Memory is the growth of the resident set.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on says where")]

use std::hint::black_box;

use anchorhold_geometry::{Ecef, GeoPoint};
use anchorhold_localization::{ForestConfig, PositionIndex, PositionSnapshot};

/// Like the server's anchor id: 16 bytes.
type Item = u128;

const QUERIES: usize = 20_000;

fn main() {
    let positions = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let mut random = Random(7);
    let points = city(&mut random, positions);
    let near = |random: &mut Random| {
        let (_, at) = points[random.below(positions)];
        nudge(random, at, 5.0)
    };
    let queries: Vec<Ecef> = (0..QUERIES).map(|_| near(&mut random)).collect();
    println!("{positions} positions, {QUERIES} queries, CPU time of one thread");

    let resident_before = resident_bytes();
    let (index, build_s) =
        timed(|| PositionIndex::from_points(ForestConfig::default(), points.clone()).unwrap());
    let per_anchor = (resident_bytes() - resident_before) / as_f64(positions);
    println!(
        "build, one tree          {build_s:8.2} s   {per_anchor:6.1} bytes per anchor (resident)"
    );
    queries_over("one tree", index.current(), &queries);
    drop(index);

    let flushes = 100;
    let ((), flush_s) = timed(|| {
        for chunk in points.chunks_exact(8_192).take(flushes) {
            let index = PositionIndex::from_points(ForestConfig::default(), chunk.to_vec());
            black_box(index.unwrap().len());
        }
    });
    println!("build of 8,192           {:8.2} ms", flush_s * 1e3 / as_f64(flushes));

    let (mut index, insert_s) = timed(|| {
        let mut index = PositionIndex::new(ForestConfig::default());
        for (item, at) in &points {
            index.upsert(*item, *at).unwrap();
            if let Some(job) = index.maintain() {
                index.install(job.run());
            }
        }
        index
    });
    println!("insert, merges included  {:8.2} µs each", insert_s * 1e6 / as_f64(positions));
    println!("{:?}", index.current().stats());
    queries_over("forest", index.current(), &queries);
    updates(&mut random, &mut index, &points);
    println!("{:?}", index.current().stats());
    queries_over("forest after moves", index.current(), &queries);
}

/// Moves, with a snapshot published after each one and after each 64.
fn updates(random: &mut Random, index: &mut PositionIndex<Item>, points: &[(Item, Ecef)]) {
    let count = points.len() / 10;
    for batch in [1, 64] {
        let mut published = index.snapshot();
        let ((), update_s) = timed(|| {
            for step in 0..count {
                let (item, at) = points[random.below(points.len())];
                index.upsert(item, nudge(random, at, 1.0)).unwrap();
                if step % batch == 0 {
                    published = index.snapshot();
                }
            }
        });
        let ((), merge_s) = timed(|| index.settle());
        println!(
            "move, published per {batch:<3}  {:8.2} µs each, then {:.2} µs each to merge ({} live)",
            update_s * 1e6 / as_f64(count),
            merge_s * 1e6 / as_f64(count),
            published.len()
        );
    }
}

fn queries_over(name: &str, snapshot: &PositionSnapshot<Item>, queries: &[Ecef]) {
    let ask = |k: usize, radius_m: Option<f64>, modulus: u128, queries: &[Ecef]| {
        let (found, cpu_s) = timed(|| {
            let mut found = 0;
            for query in queries {
                let mut passes = |item: Item| scatter(item).is_multiple_of(modulus);
                found += snapshot.nearest(*query, k, radius_m, &mut passes).unwrap().len();
            }
            black_box(found)
        });
        (cpu_s * 1e6 / as_f64(queries.len()), as_f64(found) / as_f64(queries.len()))
    };
    for k in [1, 10, 50] {
        let (cpu_us, _) = ask(k, None, 1, queries);
        println!("  {name}: k={k:<3}                 {cpu_us:9.2} µs");
    }
    let (cpu_us, hits) = ask(1_000, Some(10.0), 1, queries);
    println!("  {name}: within 10 m           {cpu_us:9.2} µs ({hits:.1} hits)");
    for modulus in [2, 10, 100, 1_000] {
        let (cpu_us, _) = ask(10, None, modulus, &queries[..QUERIES / 20]);
        println!("  {name}: k=10, 1 in {modulus:<5} passes {cpu_us:7.2} µs");
    }
}

fn city(random: &mut Random, positions: usize) -> Vec<(Item, Ecef)> {
    let centre = GeoPoint::new(48.137, 11.575, 520.0).unwrap();
    let centers: Vec<(f64, f64)> =
        (0..positions.div_ceil(200)).map(|_| (random.unit(), random.unit())).collect();
    let point = |random: &mut Random| {
        let (north, east) = centers[random.below(centers.len())];
        let north_m = north * 10_000.0 + random.normal() * 15.0;
        let east_m = east * 10_000.0 + random.normal() * 15.0;
        let floor_m = as_f64(random.below(8)) * 3.5;
        let latitude_deg = centre.latitude_deg() + north_m / 111_200.0;
        let longitude_deg = centre.longitude_deg() + east_m / 74_200.0;
        let at = GeoPoint::new(latitude_deg, longitude_deg, 520.0 + floor_m).unwrap().to_ecef();
        (u128::from(cell(north_m, east_m)) << 64 | u128::from(random.next()), at)
    };
    (0..positions).map(|_| point(random)).collect()
}

/// A Morton code of 1 m squares: like an anchor id's cell, near places have near codes.
fn cell(north_m: f64, east_m: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 16,384")]
    let square = |m: f64| (m + 3_000.0).clamp(0.0, 16_383.0) as u64;
    let bits = |n: u64, bit: u32| n >> bit & 1;
    (0..14).fold(0, |code, bit| {
        code | bits(square(north_m), bit) << (2 * bit + 1) | bits(square(east_m), bit) << (2 * bit)
    })
}

fn nudge(random: &mut Random, at: Ecef, sigma_m: f64) -> Ecef {
    Ecef::new(at.xyz_m().map(|coordinate| coordinate + random.normal() * sigma_m))
}

/// Spreads an id's bits, so that a filter by remainder is blind to place.
fn scatter(item: Item) -> u128 {
    item.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835) >> 64
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before_s = cpu_s();
    let result = work();
    (result, cpu_s() - before_s)
}

/// CPU time of this thread, seconds.
fn cpu_s() -> f64 {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    statistics.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn resident_bytes() -> f64 {
    let statistics = std::fs::read_to_string("/proc/self/statm").unwrap();
    statistics.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0
}

#[expect(clippy::cast_precision_loss, reason = "counts stay below 2^53")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

/// splitmix64 (Steele, Lea and Flood, OOPSLA 2014): small, fixed, good enough for a benchmark.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap() % bound
    }

    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About standard normal: a sum of twelve uniforms.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}
