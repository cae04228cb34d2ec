//! The router, with three agents of which each says anything: it never panics, keeps its bounds,
//! and forgets everything with them.

use std::sync::Arc;

use agentd_bus::access::SameUser;
use agentd_bus::frame::{Frame, PeerId, check_header, kind};
use agentd_bus::message::Control;
use agentd_bus::router::{ConnId, ConnKind, Descriptor, Effects, Limits, Now, PeerSpec, Router};

use crate::input::Input;

const KINDS: [u16; 8] = [
    kind::REQUEST,
    kind::RESPONSE,
    kind::RESPONSE | kind::ERROR,
    kind::EVENT,
    kind::EVENT | kind::BROADCAST,
    kind::COMMAND,
    kind::HEARTBEAT,
    kind::ERROR,
];

/// Memory of any size.
#[derive(Clone, Debug)]
struct Memory(u64);

impl Descriptor for Memory {
    fn bytes(&self) -> u64 {
        self.0
    }
}

fn id(n: u8) -> PeerId {
    PeerId([n + 1; 16])
}

pub fn router(data: &[u8]) {
    let mut input = Input::new(data);
    let limits = Limits {
        out_frames: 8,
        inbox_messages: 4,
        max_inflight: 4,
        max_waiting_requests: 2,
        ..Limits::default()
    };
    let mut router: Router<Memory> = Router::new(limits);
    let mut fx = Effects::default();
    let mut now = Now {
        mono_ns: 1,
        wall_ns: 1,
    };
    let mut conns: Vec<ConnId> = Vec::new();
    for n in 0..3 {
        let spec = PeerSpec {
            id: id(n),
            uid: 1000,
            name: format!("agent-{n}"),
            short: n.into(),
            access: Arc::new(SameUser),
        };
        router.attach(spec, now, &mut fx).expect("names differ");
        let conn = router
            .connect(id(n), ConnKind::Socket, now)
            .expect("it is there");
        let hello = Control::Hello {
            version: 1,
            options: 0,
        };
        let hello = hello.encode().expect("fixed size");
        router.frame(
            conn,
            Frame::new(kind::COMMAND, PeerId::BUS, 1, hello),
            None,
            now,
            &mut fx,
        );
        conns.push(conn);
    }
    while !input.is_empty() {
        let from = usize::from(input.u8() % 3);
        let conn = conns[from];
        match input.u8() % 8 {
            0 => while router.pull(conn, &mut fx).is_some() {},
            1 => {
                now.mono_ns += u64::from(input.u16()) * 1_000_000;
                router.tick(now, &mut fx);
            }
            2 => {
                router.disconnect(conn, now, &mut fx);
                conns[from] = router
                    .connect(id(from as u8), ConnKind::Port, now)
                    .expect("ports are not counted");
            }
            _ => {
                let bits = KINDS[usize::from(input.u8()) % KINDS.len()];
                let to = match input.u8() % 4 {
                    3 => PeerId::BUS,
                    n => id(n),
                };
                let correlation = u32::from(input.u8() % 8);
                let flags = u32::from(input.u16());
                let len = usize::from(input.u8());
                let mut frame = Frame::new(bits, to, correlation, input.bytes(len));
                frame.header.flags = flags.into();
                let fd = frame.has_fd_flag().then(|| Memory(input.u64()));
                // What the decoder refuses never reaches the router.
                if check_header(&frame.header, limits.max_payload).is_ok() {
                    router.frame(conn, frame, fd, now, &mut fx);
                }
            }
        }
    }
    for n in 0..3 {
        router.detach(id(n), now, &mut fx);
    }
    assert_eq!(router.open_requests(), 0);
    // Queues outlive those who use them: what was delayed in one only waits from then on.
    now.mono_ns = u64::MAX;
    router.tick(now, &mut fx);
    assert_eq!(router.next_deadline_ns(), None);
}
