//! Conveniences on the generated messages, for plugins and hosts alike.

use bytes::Bytes;

use crate::v1::{
    Allow, CheckRequestResponse, CheckResponseResponse, Header, HeaderMutation, HeaderMutations, Reply, Request,
    check_request_response, check_response_response, header_mutation::Mutation,
};

impl Request {
    /// The first value of a header; `name` in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|header| header.name == name).map(|header| header.value.as_ref())
    }

    /// All values of a header in their order; `name` in lower case.
    pub fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |header| header.name == name).map(|header| header.value.as_ref())
    }
}

impl Header {
    /// A header field; `name` in lower case.
    pub fn new(name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

impl HeaderMutation {
    /// Replaces every field of this name.
    pub fn set(name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { mutation: Some(Mutation::Set(Header::new(name, value))) }
    }

    /// Adds a field behind those that are there.
    pub fn append(name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { mutation: Some(Mutation::Append(Header::new(name, value))) }
    }

    /// Removes every field of this name.
    pub fn remove(name: impl Into<String>) -> Self {
        Self { mutation: Some(Mutation::Remove(name.into())) }
    }
}

impl CheckRequestResponse {
    /// Lets the request pass unchanged; chain [`Self::mutate`] for changes.
    #[must_use]
    pub fn allow() -> Self {
        Self { verdict: Some(check_request_response::Verdict::Allow(Allow::default())), ..Self::default() }
    }

    /// Refuses the request with a text for the client.
    pub fn deny(status: u16, text: impl Into<String>) -> Self {
        Self { verdict: Some(check_request_response::Verdict::Deny(Reply::text(status, text))), ..Self::default() }
    }

    /// Adds a change to the request's headers. Does nothing to a refusal.
    #[must_use]
    pub fn mutate(mut self, mutation: HeaderMutation) -> Self {
        if let Some(check_request_response::Verdict::Allow(allow)) = &mut self.verdict {
            allow.request_headers.push(mutation);
        }
        self
    }

    /// Adds a change to the headers of the response to come. Does nothing to a refusal.
    #[must_use]
    pub fn mutate_response(mut self, mutation: HeaderMutation) -> Self {
        if let Some(check_request_response::Verdict::Allow(allow)) = &mut self.verdict {
            allow.response_headers.push(mutation);
        }
        self
    }
}

impl CheckResponseResponse {
    /// Lets the response pass with these changes.
    #[must_use]
    pub fn pass(headers: Vec<HeaderMutation>) -> Self {
        Self { verdict: Some(check_response_response::Verdict::Pass(HeaderMutations { headers })), ..Self::default() }
    }

    /// Sends another response in its place.
    #[must_use]
    pub fn replace(reply: Reply) -> Self {
        Self { verdict: Some(check_response_response::Verdict::Replace(reply)), ..Self::default() }
    }
}

impl Reply {
    /// A reply of plain text.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self {
            status: u32::from(status),
            headers: vec![Header::new("content-type", "text/plain; charset=utf-8")],
            body: Bytes::from(text.into()),
        }
    }
}
