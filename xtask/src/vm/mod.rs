//! `cargo xtask vm`: the sandbox on kernels that this machine does not run, in QEMU without KVM.
//!
//! [`kernel`] has the pinned series, [`image`] makes a small guest of this machine's own release,
//! [`qemu`] boots it, and [`guest`] is what runs inside: the launcher's tests, cgroup v2 limits,
//! refusals, attacks. Set-up says what it fetches, installs nothing, and keeps all of it below
//! `target/vm` ([`cache`]). As many machines run at a time as there are processors. What can't be
//! had here is a counted skip that names it. Leaves nothing running and no mount, also on Ctrl-C.

mod apt;
mod cache;
pub mod guest;
mod image;
mod initrd;
mod kernel;
mod programs;
mod qemu;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use self::cache::Cache;
use self::guest::Variant;
use self::image::Guest;
use self::kernel::{Kernel, SERIES, Series};
use self::qemu::{Boot, Qemu, Ran};
use self::report::{Boots, Report};
use crate::test::{Outcome, Skip};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these kernels [default: all]
    #[arg(long, value_name = "SERIES", value_delimiter = ',', value_parser = ["6.1", "6.12", "7"])]
    kernel: Vec<String>,
    /// Only these tests: one short boot of each kernel [default: all]
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Take the programs from this directory instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<std::path::PathBuf>,
    /// Keep the disks, consoles and logs of the run, and say where
    #[arg(long)]
    keep: bool,
    /// Print one JSON object on stdout: docs/vm.md has its shape
    #[arg(long)]
    json: bool,
}

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// What Landlock tells the kernel's audit.
    Audit,
}

impl Only {
    fn variants(self) -> &'static [Variant] {
        match self {
            Self::Audit => &[Variant::Audit],
        }
    }
}

#[expect(clippy::print_stdout, reason = "the report is this verb's data")]
pub fn vm(args: &Args) -> Result<ExitCode> {
    let series = if args.kernel.is_empty() {
        SERIES.to_vec()
    } else {
        args.kernel
            .iter()
            .map(|name| Series::of_name(name))
            .collect::<Result<_>>()?
    };
    let keep = if args.keep { Keep::Logs } else { Keep::Nothing };
    let report = run(&series, args.only, args.programs.as_deref(), keep, ALL)?;
    let outcome = report.outcome();
    if args.json {
        println!("{}", report.json()?);
    } else {
        print!("{}", report.text());
    }
    Ok(if outcome.failed == 0 && outcome.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// As many machines at a time as there are processors: an emulated one has one.
pub const ALL: usize = usize::MAX;

/// The tier: the kernels of two Debian releases, at most `machines` at a time.
pub fn tier(machines: usize) -> Result<Outcome> {
    let series = [Series::of_name("6.1")?, Series::of_name("6.12")?];
    let report = run(&series, None, None, Keep::Nothing, machines)?;
    eprint!("{}", report.text());
    Ok(report.outcome())
}

/// What stays of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Logs,
}

fn run(
    series: &[Series],
    only: Option<Only>,
    programs: Option<&std::path::Path>,
    keep: Keep,
    machines: usize,
) -> Result<Report> {
    let mut report = Report::default();
    if let Some(why) = unfit() {
        report.skip(Skip::new("vm", why));
        return Ok(report);
    }
    let cache = Cache::open()?;
    let bed = Qemu::get(&cache).and_then(|qemu| Ok((Guest::get(&cache)?, qemu)));
    let (guest, qemu) = match bed {
        Ok(bed) => bed,
        Err(why) => {
            crate::stop::check()?;
            report.skip(Skip::new("vm", format!("no machine can be had: {why:#}")));
            return Ok(report);
        }
    };
    report.emulator = qemu.version()?;
    let scratch = tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(cache.path())
        .context("make a directory for the run")?;
    let files = match programs {
        Some(directory) => programs::in_directory(directory)?,
        None => programs::build()?,
    };
    let image = image::of_programs(scratch.path(), &files)?;
    let mut planned = Vec::new();
    for (index, series) in series.iter().enumerate() {
        let kernel = match Kernel::get(&cache, *series) {
            Ok(kernel) => kernel,
            Err(why) => {
                crate::stop::check()?;
                report.skip(Skip::new(
                    "vm-kernel",
                    format!("no kernel {} can be had: {why:#}", series.name),
                ));
                continue;
            }
        };
        let initrd = scratch.path().join(format!("initrd-{}", series.name));
        std::fs::write(&initrd, initrd::build(&kernel, &guest.busybox)?)
            .context("write the initrd")?;
        // Refusals for want of Landlock or a controller depend on no version: one kernel shows them.
        let variants: &[Variant] = match (only, index) {
            (Some(only), _) => only.variants(),
            (None, 0) => &[Variant::Whole, Variant::Bare],
            (None, _) => &[Variant::Whole],
        };
        for variant in variants {
            let directory = scratch
                .path()
                .join(format!("{}-{}", series.name, variant.name()));
            std::fs::create_dir(&directory).context("make a directory for a boot")?;
            planned.push(Planned {
                series: *series,
                variant: *variant,
                kernel: kernel.image(),
                initrd: initrd.clone(),
                directory,
            });
        }
    }
    let boot = |planned: &Planned| {
        let boot = Boot {
            kernel: &planned.kernel,
            initrd: &planned.initrd,
            root: &guest.image,
            programs: &image,
            parameters: &parameters(planned.variant),
            directory: &planned.directory,
        };
        boot_twice(&qemu, &boot, planned.series, planned.variant)
    };
    for (planned, boots) in planned.iter().zip(at_once(&planned, machines, boot)) {
        report.add(planned.series, planned.variant, boots?);
    }
    if keep == Keep::Logs {
        eprintln!("vm: kept {}", scratch.keep().display());
    }
    Ok(report)
}

/// One boot, before anything runs.
#[derive(Debug)]
struct Planned {
    series: Series,
    variant: Variant,
    kernel: PathBuf,
    initrd: PathBuf,
    directory: PathBuf,
}

/// Does `job` with each of `all`, at most `most` at a time and no more than there are processors,
/// and returns what came of them in the order of `all`.
fn at_once<T: Sync, R: Send>(all: &[T], most: usize, job: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = processors.min(most);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(one) = all.get(at)
        {
            done.push((at, job(one)));
        }
        done
    };
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..workers.min(all.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let joined = started.into_iter().map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Boots, and boots once more if the first one died without its end marker.
fn boot_twice(qemu: &Qemu, boot: &Boot<'_>, series: Series, variant: Variant) -> Result<Boots> {
    let once = || -> Result<Ran> {
        eprintln!("vm: booting {} ({})", series.name, variant.name());
        let begun = Instant::now();
        let ran = qemu.run(boot, |line| {
            if let Some(words) = report::progress(line) {
                let (name, variant, at) = (series.name, variant.name(), begun.elapsed().as_secs());
                eprintln!("vm: {name} ({variant}), {at} s: {words}");
            }
        })?;
        let took = ran.took.as_secs_f32();
        eprintln!("vm: {} ({}) took {took:.1} s", series.name, variant.name());
        Ok(ran)
    };
    let first = once()?;
    if first.end.is_some() {
        return Ok(Boots::new(first, 1));
    }
    eprintln!(
        "vm: {} died without an end marker ({}): once more",
        series.name,
        first.console.display()
    );
    Ok(Boots::new(once()?, 2))
}

fn parameters(variant: Variant) -> String {
    format!(
        "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off no_timer_check {} -- --variant {}",
        variant.parameters(),
        variant.name()
    )
}

/// Why this machine can't build a guest.
fn unfit() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("the guest's file system has files of root's: run it with sudo".to_owned());
    }
    if !cfg!(target_arch = "x86_64") {
        return Some("the guests are x86_64".to_owned());
    }
    kernel::missing_tool()
        .map(|tool| format!("{tool} is missing (packages xz-utils, e2fsprogs, libc-bin)"))
}

/// The search path with root's directories in it.
fn with_sbin() -> String {
    format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_at_once_comes_back_in_its_order() {
        let all: Vec<u32> = (0..50).collect();
        assert_eq!(
            at_once(&all, ALL, |one| one * 2),
            all.iter().map(|one| one * 2).collect::<Vec<_>>()
        );
        assert!(at_once(&[] as &[u32], 1, |one| *one).is_empty());
    }
}
