//! From samples to rows: first the promised ratios in their order, then every figure behind them.
//!
//! A ratio is taken round by round, of two samples that were taken close together, and the row is the median of those.

use bench_kit::report::{Limit, Report, spread};

use crate::cells::{Cell, Figure, PROMISES, Promise, Work};
use crate::run::Measured;

/// Rows of the promises in `ids`, then all figures.
pub fn of(ids: &[String], measured: &[Measured]) -> Report {
    let mut report = Report::default();
    let asked = |promise: &&Promise| ids.iter().any(|id| id == promise.id);
    for promise in PROMISES.iter().filter(asked) {
        match ratio(promise, measured) {
            Ok(samples) => report.promised(promise.id, samples, promise.limit),
            Err(why) => report.skip(promise.id, why),
        }
    }
    for one in measured {
        match &one.failed {
            Some(why) => report.skip(one.cell.id(), why),
            None => figures(one, &mut report),
        }
    }
    report
}

/// Ours divided by the peer's, round by round; of several pairs the one that is furthest from its limit's good side.
fn ratio(promise: &Promise, measured: &[Measured]) -> Result<Vec<f64>, String> {
    let of = |cell: &Cell| {
        let found = measured.iter().find(|one| one.cell == *cell);
        let one = found.ok_or_else(|| format!("{} was not measured", cell.id()))?;
        match &one.failed {
            Some(why) => Err(format!("{}: {why}", cell.id())),
            None => Ok(one.figures(promise.figure)),
        }
    };
    let mut worst: Option<Vec<f64>> = None;
    for (ours, peer) in promise.pairs {
        let ratios: Vec<f64> = of(ours)?
            .iter()
            .zip(of(peer)?)
            .map(|(ours, peer)| ours / peer)
            .collect();
        let worse = worst.as_ref().is_none_or(|before| {
            let (before, now) = (spread(before).0, spread(&ratios).0);
            match promise.limit {
                Limit::AtMost(_) => now > before,
                Limit::AtLeast(_) => now < before,
            }
        });
        if worse {
            worst = Some(ratios);
        }
    }
    worst.ok_or_else(|| "nothing to compare".to_owned())
}

/// Every figure of a cell.
fn figures(measured: &Measured, report: &mut Report) {
    let id = measured.cell.id();
    let mut row = |name: &str, unit, figure| {
        report.figure(format!("{id}{name}"), unit, measured.figures(figure));
    };
    match measured.cell.work {
        Work::RoundTrip | Work::OpenLoop(_) => {
            row(".p50", "ns", Figure::P50);
            row(".p99", "ns", Figure::P99);
            row(".p999", "ns", Figure::P999);
        }
        Work::Throughput | Work::Inline => row("", "msg/s", Figure::Rate),
        Work::FanOut(..) => {
            row(".cpu", "ns", Figure::Cpu);
            row(".rate", "msg/s", Figure::Rate);
        }
        Work::Bulk => {
            let gigabytes = measured.cell.bytes as f64 / 1e9;
            let rates = measured.figures(Figure::Rate);
            let rates = rates.iter().map(|rate| rate * gigabytes).collect();
            report.figure(id, "GB/s", rates);
        }
    }
}
