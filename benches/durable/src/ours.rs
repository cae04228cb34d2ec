//! Ours: the segment log, with and without io_uring, the record, and what further rows say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use agentd_storage::Store;
use agentd_storage::stream::segment::{Disk, Options, SegmentStore};
use agentd_storage::stream::sqlite::SqliteStreams;
use agentd_storage::stream::{
    Compression, Done, NewRecord, ReadFrom, ReadLimit, StreamError, StreamId, StreamKind,
    StreamName, StreamSpec, StreamStore, waiter,
};
use anyhow::{Context, Result};

use crate::{BATCH, Contender, MESSAGE, noise, rate};
use bench_kit::report::Report;

struct Ours {
    store: Arc<dyn StreamStore>,
    stream: StreamId,
    message: Arc<[u8]>,
    /// Kept for as long as the store is used.
    _runtime: Option<tokio::runtime::Runtime>,
}

fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StreamError> {
    let (done, answer) = waiter();
    question(done);
    answer.wait()
}

fn declare(store: &dyn StreamStore, kind: StreamKind, spec: StreamSpec) -> Result<StreamId> {
    let name = StreamName {
        uid: 1000,
        kind,
        name: format!("{:?}", spec.compression),
    };
    Ok(ask(|done| store.declare(name, spec, done))?.id)
}

fn open(directory: &Path, disk: Disk) -> Result<Arc<dyn StreamStore>> {
    let (store, _notes) = SegmentStore::open(&directory.join("streams"), disk, Options::default())?;
    Ok(Arc::new(store))
}

fn contender(store: Arc<dyn StreamStore>) -> Result<Ours> {
    let stream = declare(&*store, StreamKind::Queue, StreamSpec::default())?;
    let ours = Ours {
        store,
        stream,
        message: noise(1, MESSAGE).into(),
        _runtime: None,
    };
    Ok(ours)
}

pub fn segment(directory: &Path) -> Result<Box<dyn Contender>> {
    let disk = Disk::probe();
    anyhow::ensure!(
        disk.describe().starts_with("io_uring"),
        "{}",
        disk.describe()
    );
    Ok(Box::new(contender(open(directory, disk)?)?))
}

pub fn without_ring(directory: &Path) -> Result<Box<dyn Contender>> {
    let disk = Disk::plain("asked for by the benchmark");
    Ok(Box::new(contender(open(directory, disk)?)?))
}

pub fn record(directory: &Path) -> Result<Box<dyn Contender>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")?;
    let path: PathBuf = directory.join("record.db");
    let streams =
        runtime.block_on(async move { Store::open(path).await.map(SqliteStreams::new) })?;
    let mut ours = contender(Arc::new(streams))?;
    ours._runtime = Some(runtime);
    Ok(Box::new(ours))
}

pub fn sixteen(directory: &Path) -> Result<Box<dyn Contender>> {
    Ok(Box::new(Sixteen(contender(open(
        directory,
        Disk::probe(),
    )?)?)))
}

impl Ours {
    fn batch(&self, len: usize) -> Vec<NewRecord> {
        let at_ns = 1;
        let one = NewRecord {
            at_ns,
            payload: self.message.clone(),
        };
        vec![one; len]
    }
}

impl Contender for Ours {
    fn enqueue(&mut self, batches: usize) -> Result<f64> {
        rate(batches * BATCH, || {
            for _ in 0..batches {
                let batch = self.batch(BATCH);
                ask(|done| self.store.append(self.stream, batch, done))?;
            }
            Ok(())
        })
    }
}

/// Sixteen threads, each with one batch on its way: how much one sync carries.
struct Sixteen(Ours);

impl Contender for Sixteen {
    fn enqueue(&mut self, batches: usize) -> Result<f64> {
        let ours = &self.0;
        rate(batches * BATCH, || {
            std::thread::scope(|scope| {
                let producers: Vec<_> = (0..16)
                    .map(|_| {
                        scope.spawn(|| {
                            for _ in 0..batches / 16 {
                                let batch = ours.batch(BATCH);
                                ask(|done| ours.store.append(ours.stream, batch, done))?;
                            }
                            Ok::<_, StreamError>(())
                        })
                    })
                    .collect();
                for producer in producers {
                    producer.join().expect("a producer does not panic")?;
                }
                Ok(())
            })
        })
    }
}

/// How quickly a stream is replayed, and what compression saves and costs.
pub fn further(scratch: &Path, report: &mut Report, rounds: usize) -> Result<()> {
    let directory = scratch.join("further");
    std::fs::create_dir_all(&directory)?;
    let store = open(&directory, Disk::probe())?;
    let text: Arc<[u8]> = text(16 * 1024).into();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let spec = StreamSpec {
            compression,
            ..StreamSpec::default()
        };
        let stream = declare(&*store, StreamKind::Topic, spec)?;
        let (mut write, mut read) = (Vec::new(), Vec::new());
        for round in 0..=rounds.min(5) {
            let records: Vec<NewRecord> = (0..64)
                .map(|at_ns| NewRecord {
                    at_ns,
                    payload: text.clone(),
                })
                .collect();
            let megabytes = (20 * 64 * text.len()) as f64 / 1e6;
            let began = Instant::now();
            for _ in 0..20 {
                ask(|done| store.append(stream, records.clone(), done))?;
            }
            let wrote = megabytes / began.elapsed().as_secs_f64();
            let began = Instant::now();
            let (mut at, mut bytes) = (0, 0);
            loop {
                let limit = ReadLimit::default();
                let some = ask(|done| store.read(stream, ReadFrom::Offset(at), limit, done))?;
                bytes += some
                    .records
                    .iter()
                    .map(|it| it.payload.len())
                    .sum::<usize>();
                if some.next == some.end {
                    break;
                }
                at = some.next;
            }
            if round > 0 {
                write.push(wrote);
                read.push(bytes as f64 / 1e6 / began.elapsed().as_secs_f64());
            }
        }
        let name = format!("{compression:?}").to_lowercase();
        report.figure(format!("append_16KiB_{name}"), "MB/s", write);
        report.figure(format!("replay_16KiB_{name}"), "MB/s", read);
        let all = ask(|done| store.streams(done))?;
        let one = all
            .iter()
            .find(|it| it.id == stream)
            .context("declared above")?;
        let plain = (one.next * text.len() as u64) as f64;
        report.figure(
            format!("disk_per_byte_{name}"),
            "ratio",
            vec![one.disk_bytes as f64 / plain],
        );
    }
    let small = declare(
        &*store,
        StreamKind::Queue,
        StreamSpec {
            settings: "small".to_owned(),
            ..StreamSpec::default()
        },
    )?;
    let message: Arc<[u8]> = noise(9, MESSAGE).into();
    for _ in 0..200 {
        let at_ns = 1;
        let one = NewRecord {
            at_ns,
            payload: message.clone(),
        };
        ask(|done| store.append(small, vec![one; 1000], done))?;
    }
    let mut samples = Vec::new();
    for _ in 0..rounds.min(5) {
        let (mut at, mut count) = (0, 0);
        let began = Instant::now();
        loop {
            let limit = ReadLimit {
                records: 8192,
                bytes: 1 << 20,
            };
            let some = ask(|done| store.read(small, ReadFrom::Offset(at), limit, done))?;
            count += some.records.len();
            if some.next == some.end {
                break;
            }
            at = some.next;
        }
        samples.push(count as f64 / began.elapsed().as_secs_f64());
    }
    report.figure("replay_64B", "msg/s", samples);
    Ok(())
}

/// Something like what agents send: JSON with words.
fn text(len: usize) -> Vec<u8> {
    let words = [
        "compile", "the", "module", "test", "error", "in", "line", "result",
    ];
    let mut text = Vec::with_capacity(len + 64);
    let mut at = 0_usize;
    while text.len() < len {
        let word = words[at.wrapping_mul(2_654_435_761) >> 7 & 7];
        text.extend(format!("{{\"{word}\":{at},\"path\":\"src/{word}.rs\"}},").bytes());
        at += 1;
    }
    text.truncate(len);
    text
}
