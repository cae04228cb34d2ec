//! Our queue as a contender: an agent that produces, the router, an agent that consumes and acknowledges.
//!
//! All of it goes by routed shared memory. The producer gathers messages into batches, as the brokers' clients gather
//! them into writes, and has several unconfirmed; all are confirmed before a flush returns. The consumer acknowledges each batch
//! after it has read every message of it. The queue blocks its producer when it is full: nothing is dropped.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use agentd_bus::client::{Client, Consumer, Producer, Routing};
use agentd_bus::message::{Full, Outcome, QueueSpec};
use anyhow::{Context, Result, bail};
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting};

/// Messages that the consumer may have in hand.
const CREDIT: u32 = 8192;
/// Nothing here takes this long unless it hangs.
const WATCHDOG: Duration = Duration::from_secs(30);

thread_local! {
    static SOCKETS: RefCell<[PathBuf; 2]> = const { RefCell::new([PathBuf::new(), PathBuf::new()]) };
}

/// Where the producing and the consuming agent find the bus.
pub fn set_sockets(sockets: [PathBuf; 2]) {
    SOCKETS.set(sockets);
}

pub struct Queue {
    name: String,
}

impl Queue {
    fn client(agent: usize) -> Result<Client> {
        let path = SOCKETS.with_borrow(|sockets| sockets[agent].clone());
        let client = Client::connect_with(&path, Routing::Whole).context("connect to the bus")?;
        if !client.is_routed() {
            bail!("the bus gave no shared memory");
        }
        Ok(client)
    }

    fn open(&self, client: &Client) -> Result<agentd_bus::client::Queue> {
        let spec = QueueSpec {
            full: Full::Block,
            ..QueueSpec::default()
        };
        client
            .declare_queue(&self.name, spec)
            .context("declare the queue")
    }
}

pub struct Puts {
    producer: Producer,
}

pub struct Takes {
    consumer: Consumer,
}

impl Transport for Queue {
    type Sender = Puts;
    type Receiver = Takes;

    fn prepare(setup: &Setup) -> Result<Self> {
        if setup.waiting != Waiting::Blocking {
            bail!("the router's thread would share a CPU with what spins");
        }
        Ok(Self {
            name: setup.name.clone(),
        })
    }

    fn receiver(&self) -> Result<Takes> {
        let queue = self.open(&Self::client(1)?)?;
        let consumer = queue.consume(CREDIT).context("consume")?;
        Ok(Takes { consumer })
    }

    fn sender(&self) -> Result<Puts> {
        let queue = self.open(&Self::client(0)?)?;
        let producer = queue.producer().context("produce")?;
        Ok(Puts { producer })
    }
}

impl Sender for Puts {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        self.producer.push(payload).context("produce")
    }

    fn flush(&mut self) -> Result<()> {
        self.producer.flush().context("confirm")
    }
}

impl Receiver for Takes {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let delivery = self.consumer.next(WATCHDOG)?.context("nothing came")?;
        let seen = see(delivery.data());
        delivery.ack()?;
        Ok(seen)
    }

    fn drain(&mut self, _most: u64, mut see: impl FnMut(&[u8])) -> Result<u64> {
        let taken = self.consumer.for_each(WATCHDOG, |delivery| {
            see(delivery.data);
            Outcome::Ack
        })?;
        if taken == 0 {
            bail!("nothing came within {WATCHDOG:?}");
        }
        Ok(taken as u64)
    }
}
