//! The messages between agentd and the broker, which is root: each side's decoder takes only what encoding makes.

use agentd_broker::protocol::{
    MAX_MESSAGE, decode_reply, decode_request, encode_reply, encode_request, request_id,
};

/// Whatever decodes encodes to the same bytes: there are no two ways to say a thing, and no bytes that nobody looks at.
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
        assert_eq!(encode_reply(id, &reply), data);
    }
}
