//! Bodies of the gateway's answers: whole ones, and streams fed by the task that talks to the provider.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tokio::sync::mpsc;

use super::api::{Provider, error_body};

/// The body of any answer. It never fails: trouble with the provider is told in the provider's own words.
pub type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// A body whose pieces come from a channel; it ends when the sender is gone.
struct ChannelBody(mpsc::Receiver<Bytes>);

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = ready!(self.0.poll_recv(cx));
        Poll::Ready(piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A streamed answer and the channel that feeds it.
pub fn streamed(
    status: StatusCode,
    headers: HeaderMap,
) -> (Response<AnswerBody>, mpsc::Sender<Bytes>) {
    let (sender, receiver) = mpsc::channel(16);
    let mut response = Response::new(ChannelBody(receiver).boxed_unsync());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    (response, sender)
}

/// An answer in one piece.
pub fn whole(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<AnswerBody> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// An error of the gateway's own, in the provider's shape. Only what may pass is worth another try.
pub fn error(provider: Provider, status: StatusCode, message: &str) -> Response<AnswerBody> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    headers.insert(
        "x-should-retry",
        HeaderValue::from_static(if again { "true" } else { "false" }),
    );
    whole(
        status,
        headers,
        error_body(provider, status, message).to_string().into(),
    )
}
