//! Every message survives the wire, and nothing else passes for one.

use super::super::VERSION;
use super::*;
use proptest::prelude::*;

fn every_request() -> Vec<Request> {
    vec![
        Request::Hello { version: VERSION },
        Request::Launch(Launch {
            plan_len: 4096,
            grants: 3,
            caller_uid: 1000,
            caller_gid: 100,
        }),
        Request::Kill(Slot(1)),
        Request::Freeze(Slot(2)),
        Request::Thaw(Slot(3)),
        Request::Stat(Slot(u32::MAX)),
        Request::Release(Slot(5)),
        Request::Shutdown,
        Request::Keep {
            slot: Slot(6),
            count: MAX_KEPT as u32,
        },
        Request::Next { after: None },
        Request::Next {
            after: Some(Slot(7)),
        },
        Request::Adopt(launched()),
        Request::Detach,
        Request::Plane,
        Request::Audit,
        Request::AuditLost,
        Request::Absent(Group::Sched),
        Request::Restrict {
            slot: Slot(8),
            revoked: revoked::NET | revoked::WRITE,
            kept_ports: [1, 0, 0, 0, 0, 0, 0, 65535],
        },
        Request::Route {
            from: 17 << 32 | 9,
            to: 18 << 32 | 10,
            right: Right::Yes,
        },
        Request::Route {
            from: 18 << 32 | 10,
            to: 17 << 32 | 9,
            right: Right::No,
        },
        Request::Limit {
            slot: Slot(9),
            limits: Limits {
                memory_max_bytes: 1 << 30,
                pids_max: 0,
                cpu_quota_us: 50_000,
                cpu_period_us: 100_000,
            },
        },
    ]
}

fn launched() -> Launched {
    Launched {
        slot: Slot(4),
        pid: 1234,
        grace_ms: 30_000,
        host_uid: 2_046_820_356,
        host_gid: 2_046_820_356,
        caller_uid: 1000,
        caller_gid: 100,
        layers: 0x1ff,
        cgroup_id: 99,
        cgroup_path: b"/sys/fs/cgroup/agentd-1/agent-4".to_vec(),
    }
}

fn every_reply() -> Vec<Reply> {
    let stats = Stats {
        cpu_usage_us: Some(5),
        pids_current: Some(0),
        ..Stats::default()
    };
    vec![
        Reply::Welcome(Welcome {
            version: VERSION,
            mode: Mode::User,
            pid: 7,
            cgroups: CgroupFeatures {
                memory: true,
                unified: true,
                ..CgroupFeatures::default()
            },
            held: 3,
        }),
        Reply::Launched(launched()),
        Reply::Held(Held {
            info: launched(),
            state: HeldState::Running,
            kept: 32,
        }),
        Reply::Held(Held {
            info: launched(),
            state: HeldState::Gone {
                wait_status: Some(0),
                stats,
            },
            kept: 0,
        }),
        Reply::Gone(Gone {
            slot: Slot(9),
            pid: 1,
            wait_status: None,
            stats,
        }),
        Reply::Done,
        Reply::Stats(stats),
        Reply::Count(7),
        Reply::Plane(Plane {
            layout: 1,
            groups: [Group::Net, Group::Route].into_iter().collect(),
            tables: 12,
        }),
        Reply::Reason("why".into()),
        Reply::Failed(Failure {
            code: ErrorCode::Floor,
            errno: 22,
            text: "no".into(),
        }),
        Reply::Gone(Gone {
            slot: Slot(4),
            pid: 1234,
            wait_status: Some(9),
            stats,
        }),
    ]
}

#[test]
fn requests_and_replies_survive_the_wire() {
    for request in every_request() {
        let bytes = encode_request(42, &request);
        assert!(bytes.len() <= MAX_MESSAGE);
        assert_eq!(decode_request(&bytes), Ok((42, request)));
    }
    for reply in every_reply() {
        let bytes = encode_reply(43, &reply);
        assert!(bytes.len() <= MAX_MESSAGE);
        assert_eq!(decode_reply(&bytes), Ok((43, reply)));
    }
}

#[test]
fn kill_has_these_bytes() {
    assert_eq!(
        encode_request(0x0102, &Request::Kill(Slot(7))),
        b"AGBK\x03\x00\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00"
    );
}

#[test]
fn short_long_and_unknown_messages_are_refused() {
    for request in every_request() {
        let bytes = encode_request(1, &request);
        for end in 0..bytes.len() {
            assert!(
                decode_request(&bytes[..end]).is_err(),
                "{request:?} cut to {end}"
            );
        }
        assert!(
            decode_request(&[&bytes[..], &[0]].concat()).is_err(),
            "{request:?} with a byte more"
        );
    }
    for reply in every_reply() {
        assert!(matches!(
            decode_request(&encode_reply(1, &reply)),
            Err(DecodeError::Kind { .. })
        ));
    }
}

#[test]
fn reserved_bytes_must_be_zero() {
    let kill = encode_request(1, &Request::Kill(Slot(1)));
    for index in [0, 6, 7, 20, 23] {
        let mut bytes = kill.clone();
        bytes[index] ^= 1;
        assert!(decode_request(&bytes).is_err(), "byte {index}");
    }
}

#[test]
fn too_many_grants_are_refused() {
    let launch = Launch {
        plan_len: 1,
        grants: MAX_GRANTS as u32 + 1,
        caller_uid: 0,
        caller_gid: 0,
    };
    let error = decode_request(&encode_request(1, &Request::Launch(launch)));
    assert_eq!(
        error,
        Err(DecodeError::Field {
            kind: kind::LAUNCH,
            field: "grants"
        })
    );
}

#[test]
fn more_to_keep_than_is_kept_is_refused() {
    let keep = Request::Keep {
        slot: Slot(1),
        count: MAX_KEPT as u32 + 1,
    };
    let (kind, field) = (kind::KEEP, "count");
    let error = decode_request(&encode_request(1, &keep));
    assert_eq!(error, Err(DecodeError::Field { kind, field }));
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let text = "é".repeat(MAX_TEXT);
    let failure = Failure {
        code: ErrorCode::Plan,
        errno: 0,
        text,
    };
    let (_, reply) = decode_reply(&encode_reply(1, &Reply::Failed(failure))).expect("decodes");
    let Reply::Failed(failure) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(failure.text, "é".repeat(MAX_TEXT / 2));
}

#[test]
fn error_codes_are_distinct() {
    for raw in 0..=u16::MAX {
        if let Some(code) = ErrorCode::from_raw(raw) {
            assert_eq!(code as u16, raw);
        }
    }
    assert_eq!((0..=u16::MAX).filter_map(ErrorCode::from_raw).count(), 17);
}

proptest! {
    #[test]
    fn any_bytes_decode_to_an_error_or_to_themselves(mut bytes in proptest::collection::vec(any::<u8>(), 0..700), k in 0u16..110, framed: bool) {
        if framed && bytes.len() >= 16 {
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[4..6].copy_from_slice(&k.to_le_bytes());
            bytes[6..8].fill(0);
        }
        if let Ok((id, request)) = decode_request(&bytes) {
            prop_assert_eq!(encode_request(id, &request), bytes.clone());
        }
        let _decoded_or_refused = decode_reply(&bytes).is_ok();
    }
}
