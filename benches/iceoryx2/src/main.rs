//! iceoryx2 as a contender: publish-subscribe with loaned samples, and its events where the receiver sleeps.
//!
//! Configured for one publisher and one subscriber, no history, and no loss: a full buffer holds the publisher up. The
//! payload is of a fixed type, written into the loaned sample and read in place, with no copy by the receiver. Busy is a
//! loop around `receive`; blocking is one `notify` per message and `blocking_wait` on the listener.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bench_kit::measure::{Sample, Task, sample};
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting, extra};
use iceoryx2::port::backpressure_strategy::BackpressureStrategy;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

/// Samples between publisher and subscriber.
const BUFFER: usize = 1024;

struct Iceoryx<const N: usize> {
    files: Files,
    name: String,
    waiting: Waiting,
}

struct Out<const N: usize> {
    publisher: Publisher<ipc::Service, [u8; N], ()>,
    notifier: Option<Notifier<ipc::Service>>,
    _node: Node<ipc::Service>,
}

struct In<const N: usize> {
    subscriber: Subscriber<ipc::Service, [u8; N], ()>,
    listener: Option<Listener<ipc::Service>>,
    _node: Node<ipc::Service>,
}

impl<const N: usize> Iceoryx<N> {
    fn node(&self) -> Result<Node<ipc::Service>> {
        NodeBuilder::new()
            .config(&self.files.config()?)
            .signal_handling_mode(SignalHandlingMode::Disabled)
            .create::<ipc::Service>()
            .map_err(|error| anyhow!("make a node: {error:?}"))
    }

    fn service(&self, node: &Node<ipc::Service>) -> Result<PubSub<N>> {
        let name = ServiceName::new(&self.name).context("name the service")?;
        node.service_builder(&name)
            .publish_subscribe::<[u8; N]>()
            .max_publishers(1)
            .max_subscribers(1)
            .max_nodes(2)
            .history_size(0)
            .subscriber_max_buffer_size(BUFFER)
            .subscriber_max_borrowed_samples(2)
            .enable_safe_overflow(false)
            .open_or_create()
            .map_err(|error| anyhow!("open the service: {error:?}"))
    }

    fn event(&self, node: &Node<ipc::Service>) -> Result<Event> {
        let name = ServiceName::new(&self.name).context("name the event")?;
        node.service_builder(&name)
            .event()
            .max_notifiers(1)
            .max_listeners(1)
            .max_nodes(2)
            .event_id_max_value(1)
            .open_or_create()
            .map_err(|error| anyhow!("open the event: {error:?}"))
    }
}

type PubSub<const N: usize> =
    iceoryx2::service::port_factory::publish_subscribe::PortFactory<ipc::Service, [u8; N], ()>;
type Event = iceoryx2::service::port_factory::event::PortFactory<ipc::Service>;

impl<const N: usize> Transport for Iceoryx<N> {
    type Sender = Out<N>;
    type Receiver = In<N>;

    fn prepare(setup: &Setup) -> Result<Self> {
        set_log_level(LogLevel::Error);
        Ok(Self {
            files: Files::of_this_process(),
            name: setup.name.clone(),
            waiting: setup.waiting,
        })
    }

    fn receiver(&self) -> Result<In<N>> {
        let node = self.node()?;
        let subscriber = self
            .service(&node)?
            .subscriber_builder()
            .buffer_size(BUFFER)
            .create()
            .map_err(|error| anyhow!("make a subscriber: {error:?}"))?;
        let listener = match self.waiting {
            Waiting::Busy => None,
            Waiting::Adaptive | Waiting::Blocking => Some(
                self.event(&node)?
                    .listener_builder()
                    .create()
                    .map_err(|error| anyhow!("make a listener: {error:?}"))?,
            ),
        };
        Ok(In {
            subscriber,
            listener,
            _node: node,
        })
    }

    fn sender(&self) -> Result<Out<N>> {
        let node = self.node()?;
        let publisher = self
            .service(&node)?
            .publisher_builder()
            .max_loaned_samples(1)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()
            .map_err(|error| anyhow!("make a publisher: {error:?}"))?;
        let notifier = match self.waiting {
            Waiting::Busy => None,
            Waiting::Adaptive | Waiting::Blocking => Some(
                self.event(&node)?
                    .notifier_builder()
                    .create()
                    .map_err(|error| anyhow!("make a notifier: {error:?}"))?,
            ),
        };
        Ok(Out {
            publisher,
            notifier,
            _node: node,
        })
    }
}

impl<const N: usize> Sender for Out<N> {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let payload: &[u8; N] = payload.try_into().context("the payload's size")?;
        let sample = self
            .publisher
            .loan_uninit()
            .map_err(|error| anyhow!("loan a sample: {error:?}"))?;
        sample
            .write_payload(*payload)
            .send()
            .map_err(|error| anyhow!("send: {error:?}"))?;
        if let Some(notifier) = &self.notifier {
            notifier
                .notify()
                .map_err(|error| anyhow!("notify: {error:?}"))?;
        }
        Ok(())
    }
}

impl<const N: usize> Receiver for In<N> {
    #[inline]
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        loop {
            let received = self
                .subscriber
                .receive()
                .map_err(|error| anyhow!("receive: {error:?}"))?;
            if let Some(sample) = received {
                return Ok(see(sample.payload().as_slice()));
            }
            match &self.listener {
                None => std::hint::spin_loop(),
                Some(listener) => listener
                    .blocking_wait(|_| ())
                    .map(drop)
                    .map_err(|error| anyhow!("wait: {error:?}"))?,
            }
        }
    }
}

/// Where iceoryx2 keeps its files; it leaves some behind, and this removes them.
#[derive(Clone, Debug)]
struct Files {
    root: PathBuf,
    prefix: String,
}

impl Files {
    /// Those of this process and the two that it forks.
    fn of_this_process() -> Self {
        let prefix = format!("bench-iceoryx2-{}-", std::process::id());
        Self {
            root: std::env::temp_dir().join(&prefix),
            prefix,
        }
    }

    fn config(&self) -> Result<Config> {
        let mut config = Config::default();
        let root = Path::new(self.root.as_os_str().as_encoded_bytes());
        config
            .global
            .set_root_path(&root.map_err(|error| anyhow!("{:?}: {error:?}", self.root))?);
        let prefix = FileName::new(self.prefix.as_bytes());
        config.global.prefix = prefix.map_err(|error| anyhow!("{}: {error:?}", self.prefix))?;
        Ok(config)
    }

    fn remove(&self) -> Result<()> {
        if self.root.exists() {
            std::fs::remove_dir_all(&self.root).context("remove iceoryx2's files")?;
        }
        for entry in std::fs::read_dir("/dev/shm").context("list /dev/shm")? {
            let entry = entry.context("list /dev/shm")?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(self.prefix.as_bytes()) {
                std::fs::remove_file(entry.path()).context("remove iceoryx2's memory")?;
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    extra::serve(|task: &Task| -> Result<Sample> {
        let taken = take(task);
        Files::of_this_process().remove()?;
        taken
    })
}

fn take(task: &Task) -> Result<Sample> {
    match task.bytes {
        48 => sample::<Iceoryx<48>>(task),
        64 => sample::<Iceoryx<64>>(task),
        4096 => sample::<Iceoryx<4096>>(task),
        bytes => bail!("there is no payload type of {bytes} bytes; 48, 64 and 4096 there are"),
    }
}
