//! `bus`: the bus beside its peers and beside the machine's own limits. docs/benchmarks.md says what each row is.
//!
//! One thread; every measurement is two processes forked from it. `cargo xtask bench bus` builds this program and its
//! companions (`bus-NAME`, one for each peer with a heavy build) and reads its JSON; `--only p50` measures one row.

mod cells;
mod floor;
mod ours;
mod peers;
mod report;
mod run;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;

use crate::cells::{Cell, GROUPS, PROMISES};
use crate::run::Effort;

/// The bus beside its peers and beside the machine's own limits.
#[derive(Debug, Parser)]
struct Args {
    /// Print the samples as one JSON object
    #[arg(long)]
    json: bool,
    /// Measure nothing; name the peers that need a build or a server of their own, one a line
    #[arg(long)]
    peers: bool,
    /// Fewer and shorter rounds: for a first look, not for publishing
    #[arg(long)]
    quick: bool,
    /// Measure only these rows (`p50,wake`) or cells (`busy.oneway48.lane`, or any part of such a name)
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds of each group
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of one sample
    #[arg(long, value_name = "MS")]
    sample_ms: Option<u64>,
}

/// What `--only` asks for: rows, and cells by group.
struct Selection {
    rows: Vec<String>,
    groups: Vec<Vec<Cell>>,
}

fn select(only: &[String]) -> Result<Selection> {
    let every_row = || PROMISES.iter().map(|row| row.id.to_owned());
    if only.is_empty() {
        return Ok(Selection {
            rows: every_row().collect(),
            groups: GROUPS.iter().map(|group| group.to_vec()).collect(),
        });
    }
    let mut cells: Vec<Cell> = Vec::new();
    let mut rows = Vec::new();
    for name in only {
        let before = cells.len();
        if let Some(row) = PROMISES.iter().find(|row| row.id == name) {
            rows.push(name.clone());
            cells.extend(row.pairs.iter().flat_map(|(ours, peer)| [ours, peer]));
        } else {
            let all = GROUPS.concat();
            cells.extend(all.iter().filter(|cell| cell.id().contains(name.as_str())));
        }
        if cells.len() == before {
            let known: Vec<String> = every_row().collect();
            bail!(
                "no row or cell is called {name:?}; rows are {}",
                known.join(", ")
            );
        }
    }
    let groups = GROUPS.iter().map(|group| {
        let wanted = group.iter().filter(|cell| cells.contains(cell));
        wanted.copied().collect::<Vec<Cell>>()
    });
    Ok(Selection {
        rows,
        groups: groups.filter(|group| !group.is_empty()).collect(),
    })
}

#[expect(clippy::print_stdout, reason = "the report is this program's data")]
fn main() -> Result<()> {
    let args = Args::parse();
    let (rounds, length) = if args.quick { (5, 60) } else { (11, 150) };
    let effort = Effort {
        rounds: args.rounds.unwrap_or(rounds).max(1),
        length: Duration::from_millis(args.sample_ms.unwrap_or(length)),
    };
    let selection = select(&args.only)?;
    if args.peers {
        let cells = selection.groups.concat();
        let needed: BTreeSet<&str> = cells.iter().filter_map(|cell| cell.who.peer()).collect();
        needed.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let mut measured = Vec::new();
    for (nth, group) in selection.groups.iter().enumerate() {
        let names: Vec<String> = group.iter().map(Cell::id).collect();
        eprintln!(
            "[{}/{}] {}",
            nth + 1,
            selection.groups.len(),
            names.join(" ")
        );
        measured.extend(run::group(group, effort));
    }
    let report = report::of(&selection.rows, &measured);
    print!("{}", report.text(args.json)?);
    Ok(())
}
