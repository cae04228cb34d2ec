//! Where special instructions pay: check sums by tier, beside the crate that does the rest.
//!
//! `cargo bench -p agentd-bus --bench simd`. The ways alternate; medians of rounds with their spread, one JSON object
//! per row. Figures are of this machine and this run.

use std::hint::black_box;
use std::time::Instant;

use agentd_bus::simd::crc32c::{Tier, crc32c};

const ROUNDS: usize = 21;
/// Bytes per measurement: a millisecond or less, so that rounds alternate quickly.
const BYTES: usize = 4_000_000;

fn ns_each(mut work: impl FnMut(), times: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        work();
    }
    start.elapsed().as_nanos() as f64 / times as f64
}

#[allow(clippy::print_stdout, reason = "the result of a bench")]
fn row(id: &str, unit: &str, values: &mut [f64]) {
    values.sort_by(f64::total_cmp);
    println!(
        "{{\"id\":\"{id}\",\"value\":{:.2},\"unit\":\"{unit}\",\"spread\":[{:.2},{:.2}],\"limit\":null}}",
        values[values.len() / 2],
        values[0],
        values[values.len() - 1]
    );
}

fn main() {
    let data: Vec<u8> = (0..1u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for len in [8, 48, 256, 1024, 4096, 65_536, 1 << 20] {
        let data = &data[..len];
        let times = (BYTES / (len + 64)).max(4);
        let mut ways: Vec<(String, Vec<f64>)> = Tier::ALL
            .into_iter()
            .filter(|tier| tier.is_supported())
            .map(|tier| (format!("crc32c_{tier:?}_{len}").to_lowercase(), Vec::new()))
            .collect();
        let tiers: Vec<Tier> = Tier::ALL
            .into_iter()
            .filter(|tier| tier.is_supported())
            .collect();
        let mut chosen = Vec::new();
        for _ in 0..ROUNDS {
            for (tier, (_, results)) in tiers.iter().zip(&mut ways) {
                let work = || {
                    black_box(tier.append(0, black_box(data)));
                };
                results.push(ns_each(work, times));
            }
            let work = || {
                black_box(crc32c(black_box(data)));
            };
            chosen.push(ns_each(work, times));
        }
        let mut ratios: Vec<f64> = ways
            .last()
            .map(|(_, portable)| chosen.iter().zip(portable).map(|(a, b)| a / b).collect())
            .unwrap_or_default();
        for (id, results) in &mut ways {
            row(id, "ns", results);
        }
        row(&format!("crc32c_{len}"), "ns", &mut chosen);
        row(
            &format!("crc32c_{len}_against_portable"),
            "ratio",
            &mut ratios,
        );
    }
}
