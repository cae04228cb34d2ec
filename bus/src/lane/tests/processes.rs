//! Two processes, one of which is killed at random.

use super::*;

/// Another process that runs `act`, which must neither allocate nor lock, until it is killed.
struct Child(rustix::process::Pid);

impl Child {
    fn run(act: impl FnOnce()) -> Self {
        // SAFETY: the child of a threaded process may only do what is async-signal-safe: `act` uses lanes,
        // whose sends and receives make no allocation, take no lock and call the kernel for futexes only, and
        // it leaves by `_exit` without unwinding or running destructors.
        match unsafe { libc::fork() } {
            0 => {
                act();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(0) }
            }
            pid => Self(rustix::process::Pid::from_raw(pid).expect("fork")),
        }
    }

    fn kill(self) {
        rustix::process::kill_process(self.0, rustix::process::Signal::KILL).unwrap();
        let (_, status) =
            rustix::process::waitpid(Some(self.0), rustix::process::WaitOptions::empty())
                .unwrap()
                .unwrap();
        assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
    }
}

#[test]
fn a_producer_process_killed_at_random_leaves_only_whole_messages() {
    for round in 0..40u64 {
        let (mut producer, mut consumer) = shared(64);
        let payloads: Vec<Vec<u8>> = (0..16).map(|n| pattern(n * 23, n as u64)).collect();
        let child = Child::run(|| {
            for n in 0u32.. {
                let payload = &payloads[n as usize % payloads.len()];
                if producer
                    .send(
                        Tag {
                            correlation: n,
                            ..TAG
                        },
                        payload,
                        WATCHDOG,
                    )
                    .is_err()
                {
                    return;
                }
            }
        });
        let closer = consumer.closer().clone();
        let mut buffer = Vec::new();
        let mut received = 0u32;
        let mut child = Some(child);
        let end = loop {
            match consumer.recv(&mut buffer, WATCHDOG) {
                Ok(tag) => {
                    assert_eq!(tag.correlation, received);
                    assert_eq!(buffer, payloads[received as usize % payloads.len()]);
                    received += 1;
                }
                Err(end) => break end,
            }
            if u64::from(received) == 50 + round * 13
                && let Some(child) = child.take()
            {
                child.kill();
                // As the daemon does when the kernel tells it of the death.
                closer.close(Status::PEER_GONE);
            }
        };
        assert_eq!(end, RecvError::Closed(Status::PEER_GONE));
        assert!(u64::from(received) >= 50 + round * 13);
    }
}

#[test]
fn a_consumer_process_killed_at_random_never_hangs_its_producer() {
    for round in 0..40u32 {
        let (mut producer, mut consumer) = shared(64);
        let mut buffer = Vec::with_capacity(MESSAGE_MAX);
        let child = Child::run(|| while consumer.recv(&mut buffer, WATCHDOG).is_ok() {});
        let closer = producer.closer().clone();
        let mut child = Some(child);
        let mut sent = 0u32;
        let end = loop {
            match producer.send(TAG, &[7; 100], WATCHDOG) {
                Ok(()) => sent += 1,
                Err(end) => break end,
            }
            if sent == 50 + round * 13
                && let Some(child) = child.take()
            {
                child.kill();
                closer.close(Status::PEER_GONE);
            }
        };
        assert_eq!(end, SendError::Closed(Status::PEER_GONE));
    }
}
