//! The gateway without descriptors: one test in a process of its own, because the limit is the process's.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use agentd_bus::gateway::epoll::Epoll;
use agentd_bus::gateway::{
    Commands, Event, Handler, Listening, Transport, TransportKind, TransportLimits,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[derive(Default)]
struct Log {
    accepted: usize,
    closed: usize,
    listening: Vec<Listening>,
}

impl Handler for Log {
    fn event(&mut self, event: Event<'_>, _: &mut Commands) {
        match event {
            Event::Accepted { .. } => self.accepted += 1,
            Event::Closed { .. } => self.closed += 1,
            Event::Listening { state, .. } => self.listening.push(state),
            _ => {}
        }
    }
}

fn until(transport: &mut dyn Transport, log: &mut Log, done: impl Fn(&Log) -> bool) {
    let watchdog = Instant::now() + Duration::from_secs(60);
    while !done(log) {
        assert!(Instant::now() < watchdog, "hangs");
        transport.turn(Some(Duration::from_millis(5)), log).unwrap();
    }
}

#[test]
fn running_out_of_descriptors_pauses_the_listener_until_some_are_free() {
    let before = getrlimit(Resource::Nofile);
    let limits = TransportLimits::default();
    let mut transports: Vec<Box<dyn Transport>> = vec![Box::new(Epoll::new(limits).unwrap())];
    if let Ok(uring) = agentd_bus::gateway::uring::Uring::new(limits) {
        transports.push(Box::new(uring));
    }
    for mut transport in transports {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        transport
            .listen(UnixListener::bind(&path).unwrap().into())
            .unwrap();
        let mut log = Log::default();
        let first = UnixStream::connect(&path).unwrap();
        until(&mut *transport, &mut log, |log| log.accepted == 1);
        // Clients that wait, then not one descriptor more than there are.
        let waiting: Vec<UnixStream> = (0..2)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        let probe = rustix::io::fcntl_dupfd_cloexec(&first, 0).unwrap();
        let next = std::os::fd::AsRawFd::as_raw_fd(&probe) as u64;
        drop(probe);
        let tight = Rlimit {
            current: Some(next),
            maximum: before.maximum,
        };
        setrlimit(Resource::Nofile, tight).unwrap();
        until(&mut *transport, &mut log, |log| !log.listening.is_empty());
        setrlimit(Resource::Nofile, before).unwrap();
        assert!(
            matches!(
                log.listening[0],
                Listening::Paused {
                    errno: rustix::io::Errno::MFILE
                }
            ),
            "{:?}",
            log.listening
        );
        assert!(
            transport.counters().shed >= 1,
            "one peer was told by a close"
        );
        drop((first, waiting));
        until(&mut *transport, &mut log, |log| {
            log.listening.contains(&Listening::Resumed)
        });
        let _again = UnixStream::connect(&path).unwrap();
        let so_far = log.accepted;
        until(&mut *transport, &mut log, |log| log.accepted > so_far);
        assert!(matches!(
            transport.kind(),
            TransportKind::Epoll | TransportKind::IoUring
        ));
    }
}
