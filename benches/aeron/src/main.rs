//! Aeron as a contender: exclusive publications over `aeron:ipc`, the C client and the C media
//! driver.
//!
//! The media driver is a process of its own, this same program started with `driver DIRECTORY`. It
//! is not on the path of a message, but moves the publisher's limit along. On two CPUs that the two
//! sides keep busy it must not spin, and each of Aeron's idle strategies does while there is
//! traffic; so it has one thread (SHARED) that works once per [`DUTY_CYCLE`], in which a publisher
//! at full speed uses a part of the window of half a term. Terms are not sparse and touched
//! beforehand, spies and loss reports are off, publishers write into the claimed term
//! (`try_claim`), subscribers poll the image for several fragments a call.

use std::cell::Cell;
use std::ffi::CString;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bench_kit::helper::Helper;
use bench_kit::measure::{Task, sample};
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting, extra};
use rusteron_client::{
    AERON_IPC_STREAM, Aeron, AeronContext, AeronExclusivePublication, AeronImage,
    AeronSubscription, Handlers,
};
use rusteron_media_driver::bindings::aeron_threading_mode_enum;
use rusteron_media_driver::{AeronDriver, AeronDriverContext};

/// What the media driver says once clients may come.
const READY: &str = "ready";
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the media driver looks.
const DUTY_CYCLE: Duration = Duration::from_micros(200);
const TERM_BYTES: usize = 16 << 20;
/// Fragments that one poll may bring; Aeron's own samples use ten.
const FRAGMENTS: usize = 64;

struct Ipc {
    directory: CString,
    stream: i32,
    /// Held by the process that started it, until the last transport is gone.
    _driver: std::rc::Rc<Helper>,
}

thread_local! {
    static DRIVER: Cell<Option<(CString, std::rc::Weak<Helper>)>> = const { Cell::new(None) };
    static STREAMS: Cell<i32> = const { Cell::new(1001) };
}

/// The media driver of this sample: one for both directions.
fn driver() -> Result<(CString, std::rc::Rc<Helper>)> {
    let before = DRIVER.take();
    let living = before.and_then(|(directory, helper)| Some((directory, helper.upgrade()?)));
    let (directory, helper) = match living {
        Some(living) => living,
        None => {
            let directory = format!("/dev/shm/bench-aeron-{}", std::process::id());
            let own = std::env::current_exe().context("find this program")?;
            let mut command = Command::new(own);
            command.args(["driver", &directory]);
            let helper = Helper::start(&mut command, READY)?.removing(directory.clone().into());
            (CString::new(directory)?, std::rc::Rc::new(helper))
        }
    };
    DRIVER.set(Some((directory.clone(), std::rc::Rc::downgrade(&helper))));
    Ok((directory, helper))
}

impl Ipc {
    fn client(&self) -> Result<Aeron> {
        let context = AeronContext::new()?;
        context.set_dir(&self.directory)?;
        context.set_pre_touch_mapped_memory(true)?;
        let aeron = Aeron::new(&context)?;
        aeron.start()?;
        Ok(aeron)
    }
}

struct Out {
    publication: AeronExclusivePublication,
    _aeron: Aeron,
}

struct In {
    subscription: AeronSubscription,
    image: Option<AeronImage>,
    _aeron: Aeron,
}

impl Transport for Ipc {
    type Sender = Out;
    type Receiver = In;

    fn prepare(setup: &Setup) -> Result<Self> {
        if setup.waiting != Waiting::Busy {
            bail!("Aeron has no way to sleep until a message comes");
        }
        let (directory, driver) = driver()?;
        let stream = STREAMS.get();
        STREAMS.set(stream + 1);
        Ok(Self {
            directory,
            stream,
            _driver: driver,
        })
    }

    fn receiver(&self) -> Result<In> {
        let aeron = self.client()?;
        let subscription = aeron.add_subscription(
            AERON_IPC_STREAM,
            self.stream,
            Handlers::NONE,
            Handlers::NONE,
            PATIENCE,
        )?;
        Ok(In {
            subscription,
            image: None,
            _aeron: aeron,
        })
    }

    fn sender(&self) -> Result<Out> {
        let aeron = self.client()?;
        let publication =
            aeron.add_exclusive_publication(AERON_IPC_STREAM, self.stream, PATIENCE)?;
        let deadline = Instant::now() + PATIENCE;
        while !publication.is_connected() {
            if Instant::now() > deadline {
                bail!("the publication found no subscriber within {PATIENCE:?}");
            }
            std::thread::yield_now();
        }
        Ok(Out {
            publication,
            _aeron: aeron,
        })
    }
}

impl Sender for Out {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        loop {
            match self.publication.try_claim_owned(payload.len()) {
                Ok(mut claim) => {
                    claim.data().copy_from_slice(payload);
                    claim.commit()?;
                    return Ok(());
                }
                Err(error) if error.is_retryable() => std::hint::spin_loop(),
                Err(error) => return Err(anyhow!("claim: {error}")),
            }
        }
    }
}

impl In {
    /// The publication's image: polling it saves a look-up per poll.
    fn image(&mut self) -> &AeronImage {
        let subscription = &self.subscription;
        self.image.get_or_insert_with(|| {
            loop {
                if let Some(image) = subscription.image_at_index(0) {
                    break image;
                }
                std::thread::yield_now();
            }
        })
    }
}

impl Receiver for In {
    #[inline]
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let (mut see, mut seen) = (Some(see), None);
        loop {
            self.image().poll_fn(
                |payload, _| {
                    if let Some(see) = see.take() {
                        seen = Some(see(payload));
                    }
                },
                1,
            )?;
            if let Some(seen) = seen.take() {
                return Ok(seen);
            }
            std::hint::spin_loop();
        }
    }

    #[inline]
    fn drain(&mut self, most: u64, mut see: impl FnMut(&[u8])) -> Result<u64> {
        let limit = FRAGMENTS.min(usize::try_from(most).unwrap_or(FRAGMENTS));
        loop {
            let polled = self.image().poll_fn(|payload, _| see(payload), limit)?;
            if polled > 0 {
                return Ok(u64::from(polled.unsigned_abs()));
            }
            std::hint::spin_loop();
        }
    }
}

/// Runs the media driver until this process is killed.
#[expect(clippy::print_stdout, reason = "tells who started it that it is ready")]
fn drive(directory: &str) -> Result<()> {
    let context = AeronDriverContext::new()?;
    context.set_dir(&CString::new(directory)?)?;
    context.set_dir_delete_on_start(true)?;
    context.set_term_buffer_sparse_file(false)?;
    context.set_ipc_term_buffer_length(TERM_BYTES)?;
    context.set_threading_mode(aeron_threading_mode_enum::AERON_THREADING_MODE_SHARED)?;
    let driver = AeronDriver::new(&context)?;
    driver.start(true)?;
    println!("{READY}");
    loop {
        driver.main_do_work()?;
        std::thread::sleep(DUTY_CYCLE);
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let (Some("driver"), Some(directory)) = (arguments.next().as_deref(), arguments.next()) {
        return match drive(&directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    extra::serve(|task: &Task| sample::<Ipc>(task))
}
