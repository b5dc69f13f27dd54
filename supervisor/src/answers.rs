//! What is taken out of a plugin's answers before tonic reads them.

use http_body::Frame;
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::codegen::http::{HeaderName, Response};
use tonic::transport::Channel;
use tower::ServiceExt;
use tower::util::MapResponse;

/// The details of an error. Nobody here looks at them, and tonic panics over some that are not base64.
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// A connection to a plugin, for tonic's clients: a plugin can't make their task panic by what it answers.
pub type Answers = MapResponse<Channel, fn(Response<Body>) -> Response<Body>>;

/// For a client of tonic's over this connection.
pub fn answers(channel: Channel) -> Answers {
    channel.map_response(without_details)
}

fn without_details(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().remove(DETAILS);
    response.map(|body| {
        Body::new(body.map_frame(|frame| match frame.into_trailers() {
            Ok(mut trailers) => {
                trailers.remove(DETAILS);
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        }))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use http_body_util::Full;
    use tonic::codegen::http::HeaderMap;

    use super::*;

    #[tokio::test]
    async fn details_are_neither_in_the_head_nor_behind_the_body() {
        let fields: HeaderMap = [("grpc-status", "3"), ("grpc-status-details-bin", "!")]
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let trailers = fields.clone();
        let mut response = Response::new(Body::new(
            Full::new(bytes::Bytes::from_static(b"data")).with_trailers(async move { Some(Ok(trailers)) }),
        ));
        *response.headers_mut() = fields;
        let response = without_details(response);
        assert_eq!((response.headers().len(), &response.headers()["grpc-status"]), (1, &"3".parse().unwrap()));
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap().len(), 1);
        assert_eq!(body.to_bytes(), "data");
    }
}
