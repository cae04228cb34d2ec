//! Power cuts and full disks, for both stores of streams: an ext4 in a file, cut off in the middle of writing.
//!
//! `EXT4_IOC_SHUTDOWN` with "no log flush" makes the file system forget whatever it has not written yet, as a power cut does,
//! and refuse everything from then on. Then it is mounted anew. What was acknowledged must be there, and nothing else but
//! what was sent. Needs root, loop devices and e2fsprogs; a counted skip otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agentd_storage::Store;
use agentd_storage::stream::segment::{Disk, Options, SegmentStore};
use agentd_storage::stream::sqlite::SqliteStreams;
use agentd_storage::stream::{
    Done, NewRecord, ReadLimit, Settle, StreamError, StreamId, StreamKind, StreamName, StreamSpec,
    StreamStore, waiter,
};
use agentd_testkit::skip;

/// `_IOR('X', 125, __u32)`, and EXT4_GOING_FLAGS_NOLOGFLUSH.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
const NOLOGFLUSH: u32 = 2;

/// An ext4 of its own in a file; goes with this value.
struct Island {
    home: tempfile::TempDir,
    mounted: bool,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let done = Command::new(program).args(arguments).output();
    let done = done.map_err(|error| format!("{program}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program}: {}",
        String::from_utf8_lossy(&done.stderr)
    ))
}

impl Island {
    fn new(megabytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(
                "root",
                "mounting a file system needs root: run the tests with sudo",
            );
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let mut island = Self {
            home,
            mounted: false,
        };
        let image = island.home.path().join("image");
        File::create(&image)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        let image = image.to_str().unwrap().to_owned();
        std::fs::create_dir(island.path()).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", &image]);
        let mounted = made.and_then(|()| island.mount());
        if let Err(why) = mounted {
            skip("loop-ext4", &format!("no ext4 in a file here: {why}"));
            return None;
        }
        Some(island)
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("mount")
    }

    fn mount(&mut self) -> Result<(), String> {
        let image = self.home.path().join("image");
        let (image, place) = (image.to_string_lossy(), self.path());
        run("mount", &["-o", "loop", &image, &place.to_string_lossy()])?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) {
        // A ring that was closed gives its files back a little later, from the kernel's own thread.
        let began = std::time::Instant::now();
        while let Err(why) = run("umount", &[&self.path().to_string_lossy()]) {
            assert!(began.elapsed().as_secs() < 60, "{why}");
            std::thread::yield_now();
        }
        self.mounted = false;
    }

    fn cut_power(&self) {
        let (root, how) = (File::open(self.path()).unwrap(), NOLOGFLUSH);
        // SAFETY: the request reads one u32 through the pointer, which is valid for the call; the descriptor is open.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const how) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        if self.mounted {
            // Whatever a failed test still has open there.
            drop(run("umount", &["-l", &self.path().to_string_lossy()]));
        }
    }
}

fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StreamError> {
    let (done, answer) = waiter();
    question(done);
    answer.wait()
}

fn declare(store: &dyn StreamStore, name: &str) -> StreamId {
    let name = StreamName {
        uid: 1,
        kind: StreamKind::Queue,
        name: name.to_owned(),
    };
    ask(|done| store.declare(name, StreamSpec::default(), done))
        .unwrap()
        .id
}

fn record(text: &str) -> NewRecord {
    NewRecord {
        at_ns: 1,
        payload: text.as_bytes().into(),
    }
}

fn everything(store: &dyn StreamStore, stream: StreamId) -> BTreeMap<u64, String> {
    let limit = ReadLimit {
        records: usize::MAX,
        bytes: usize::MAX,
    };
    let all = ask(|done| store.unsettled(stream, 0, limit, done)).unwrap();
    assert!(all.damaged.is_empty(), "{:?}", all.damaged);
    let text = |payload: &[u8]| String::from_utf8(payload.to_vec()).unwrap();
    all.records
        .iter()
        .map(|it| (it.offset, text(&it.payload)))
        .collect()
}

/// Four producers on two streams, and a power cut in the middle of it.
fn a_power_cut(island: &mut Island, open: &dyn Fn(&Path) -> Arc<dyn StreamStore>) {
    let store = open(&island.path());
    let streams = [declare(&*store, "one"), declare(&*store, "two")];
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0));
    let kept: Mutex<BTreeMap<(usize, u64), String>> = Mutex::default();
    let settling: Mutex<BTreeSet<(usize, u64)>> = Mutex::default();
    let settled: Mutex<BTreeSet<(usize, u64)>> = Mutex::default();
    let sent: Mutex<BTreeSet<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for producer in 0..4_usize {
            let (store, stop, acknowledged) = (&store, &stop, &acknowledged);
            let (kept, sent) = (&kept, &sent);
            let (settling, settled) = (&settling, &settled);
            scope.spawn(move || {
                let which = producer % 2;
                for number in 0.. {
                    let texts = [0, 1, 2].map(|part| format!("{producer}/{number}/{part}"));
                    sent.lock().unwrap().extend(texts.clone());
                    let batch = texts.iter().map(|text| record(text)).collect();
                    let answer = ask(|done| store.append(streams[which], batch, done));
                    // Nobody hears anything after the power went; what a dying file system still says does not count.
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let first = answer.unwrap();
                    let offsets = (first..).zip(texts);
                    kept.lock()
                        .unwrap()
                        .extend(offsets.map(|(at, text)| ((which, at), text)));
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    if number % 3 == 0 {
                        settling.lock().unwrap().insert((which, first));
                        let ranges = vec![first..first + 1; 1];
                        let answer =
                            ask(|done| store.settle(streams[which], ranges, Settle::Done, done));
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        answer.unwrap();
                        settled.lock().unwrap().insert((which, first));
                    }
                }
            });
        }
        // In the middle of it: when enough was acknowledged for the cut to have something to lose.
        while acknowledged.load(Ordering::SeqCst) < 120 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::SeqCst);
        island.cut_power();
    });
    drop(store);
    island.unmount();
    island.mount().unwrap();

    let store = open(&island.path());
    let (kept, settled) = (kept.into_inner().unwrap(), settled.into_inner().unwrap());
    let settling = settling.into_inner().unwrap();
    let sent = sent.into_inner().unwrap();
    for (which, name) in ["one", "two"].into_iter().enumerate() {
        let stream = declare(&*store, name);
        assert_eq!(stream, streams[which]);
        let found = everything(&*store, stream);
        for ((_, offset), text) in kept.iter().filter(|it| it.0.0 == which) {
            let may_be_gone = settling.contains(&(which, *offset));
            match found.get(offset) {
                Some(found) => assert_eq!(found, text),
                None => assert!(may_be_gone, "{name}: {offset} was acknowledged and is lost"),
            }
        }
        for (offset, text) in &found {
            assert!(sent.contains(text), "{name}: nobody sent {text:?}");
            // What was acknowledged as settled does not come back.
            let came_back = settled.contains(&(which, *offset));
            assert!(
                !came_back,
                "{name}: {offset} was settled and is there again"
            );
        }
        // It goes on.
        ask(|done| store.append(stream, vec![record("after")], done)).unwrap();
    }
    drop(store);
    island.unmount();
}

fn segment(disk: fn() -> Disk) -> impl Fn(&Path) -> Arc<dyn StreamStore> {
    move |root| {
        let options = Options {
            segment_min: 64 << 10,
            segment_max: 1 << 20,
        };
        let (store, _notes) = SegmentStore::open(&root.join("streams"), disk(), options).unwrap();
        Arc::new(store)
    }
}

#[test]
fn a_power_cut_loses_nothing_that_the_segments_acknowledged() {
    let Some(mut island) = Island::new(64) else {
        return;
    };
    a_power_cut(&mut island, &segment(Disk::probe));
}

#[test]
fn a_power_cut_loses_nothing_that_plain_writes_acknowledged() {
    let Some(mut island) = Island::new(64) else {
        return;
    };
    a_power_cut(&mut island, &segment(|| Disk::plain("for a test")));
}

#[test]
fn a_power_cut_loses_nothing_that_the_record_acknowledged() {
    let Some(mut island) = Island::new(64) else {
        return;
    };
    /// The record, closed when the last handle goes.
    #[derive(Debug)]
    struct Held(SqliteStreams, Store, tokio::runtime::Runtime);
    impl Drop for Held {
        fn drop(&mut self) {
            // After the cut it can't be closed well; that is the point.
            drop(self.2.block_on(self.1.close()));
        }
    }
    impl StreamStore for Held {
        fn describe(&self) -> String {
            self.0.describe()
        }
        fn declare(
            &self,
            name: StreamName,
            spec: StreamSpec,
            done: Done<agentd_storage::stream::Declared>,
        ) {
            self.0.declare(name, spec, done);
        }
        fn drop_stream(&self, stream: StreamId, done: Done<()>) {
            self.0.drop_stream(stream, done);
        }
        fn append(&self, stream: StreamId, records: Vec<NewRecord>, done: Done<u64>) {
            self.0.append(stream, records, done);
        }
        fn settle(
            &self,
            stream: StreamId,
            offsets: Vec<std::ops::Range<u64>>,
            how: Settle,
            done: Done<()>,
        ) {
            self.0.settle(stream, offsets, how, done);
        }
        fn read(
            &self,
            stream: StreamId,
            from: agentd_storage::stream::ReadFrom,
            limit: ReadLimit,
            done: Done<agentd_storage::stream::Records>,
        ) {
            self.0.read(stream, from, limit, done);
        }
        fn unsettled(
            &self,
            stream: StreamId,
            from: u64,
            limit: ReadLimit,
            done: Done<agentd_storage::stream::Records>,
        ) {
            self.0.unsettled(stream, from, limit, done);
        }
        fn retain(&self, stream: StreamId, now_ns: u64, done: Done<u64>) {
            self.0.retain(stream, now_ns, done);
        }
        fn streams(&self, done: Done<Vec<agentd_storage::stream::StreamStats>>) {
            self.0.streams(done);
        }
        fn flush(&self, done: Done<()>) {
            self.0.flush(done);
        }
    }
    a_power_cut(&mut island, &|root| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let path = root.join("record.db");
        let (streams, store) = runtime.block_on(async {
            let store = Store::open(path).await.unwrap();
            (SqliteStreams::new(store.clone()), store)
        });
        Arc::new(Held(streams, store, runtime))
    });
}

#[test]
fn a_full_disk_is_told_loses_nothing_and_is_no_end() {
    let Some(mut island) = Island::new(16) else {
        return;
    };
    let open = segment(Disk::probe);
    let store = open(&island.path());
    let stream = declare(&*store, "one");
    // Somebody else's, to be removed later.
    let filler = island.path().join("filler");
    std::fs::write(&filler, vec![1; 4 << 20]).unwrap();
    let mut texts = Vec::new();
    let error = loop {
        let text = format!("{:>60000}", texts.len());
        match ask(|done| store.append(stream, vec![record(&text)], done)) {
            Ok(offset) => assert_eq!(offset, texts.len() as u64),
            Err(error) => break error,
        }
        texts.push(text);
    };
    assert!(matches!(error, StreamError::Full { .. }), "{error}");
    assert!(
        error.to_string().contains("no room for the queue \"one\""),
        "{error}"
    );
    assert!(texts.len() > 20);
    let stats = ask(|done| store.streams(done)).unwrap();
    assert!(
        stats[0]
            .trouble
            .as_ref()
            .is_some_and(|it| it.contains("no room"))
    );
    let found: Vec<String> = everything(&*store, stream).into_values().collect();
    assert!(found == texts);
    std::fs::remove_file(&filler).unwrap();
    let text = format!("{:>60000}", "after");
    ask(|done| store.append(stream, vec![record(&text)], done)).unwrap();
    texts.push(text);
    drop(store);
    let store = open(&island.path());
    let found: Vec<String> = everything(&*store, stream).into_values().collect();
    assert!(found == texts);
    drop(store);
    island.unmount();
}
