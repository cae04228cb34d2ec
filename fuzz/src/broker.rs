//! The messages between agentd and the broker, which is root.

use agentd_broker::protocol::{
    MAX_MESSAGE, Reply, decode_reply, decode_request, encode_reply, encode_request, request_id,
};

/// A request that decodes encodes to the same bytes: there are no two ways to say a thing to root, and no bytes that nobody looks
/// at. A reply, which the side with fewer rights reads, keeps its meaning.
pub fn protocol(data: &[u8]) {
    request_id(data);
    if let Ok((id, request)) = decode_request(data) {
        assert!(data.len() <= MAX_MESSAGE);
        assert_eq!(encode_request(id, &request), data);
        assert_eq!(id, request_id(data));
        assert!(decode_reply(data).is_err(), "it is a reply as well");
    }
    if let Ok((id, reply)) = decode_reply(data) {
        assert!(data.len() <= MAX_MESSAGE);
        let encoded = encode_reply(id, &reply);
        match (decode_reply(&encoded), reply) {
            // Text that is no UTF-8 grows when it is made readable, and is cut again.
            (Ok((_, Reply::Failed(again))), Reply::Failed(first)) => {
                assert_eq!((again.code, again.errno), (first.code, first.errno));
            }
            (again, reply) => assert_eq!(again, Ok((id, reply))),
        }
    }
}
