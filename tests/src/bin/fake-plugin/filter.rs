//! What the fake decides: 200 to whom the header `user` names an `admin`, and whatever `x-fake` asks for. With
//! `deny_path` in its configuration, it denies that path and nothing else, and writes what it has judged in `x-judged`.
//! With `echo`, it denies every fifth number in `x-id`, and shows each that it has judged in this header, both ways.

use std::fmt::Write;
use std::time::Duration;

use palisade_plugin_proto::serve::{Config, Error, Filter};
use palisade_plugin_proto::v1::{
    Address, CheckRequestResponse, CheckResponseRequest, CheckResponseResponse, FilterNeeds, Header, HeaderMutation,
    Reply, Request, address, check_request_response,
};
use serde_json::json;

/// Behaves as `x-fake` says.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) needs: FilterNeeds,
}

impl Filter for Fake {
    fn needs(&self) -> FilterNeeds {
        self.needs.clone()
    }

    async fn check_request(&self, request: &Request, config: &Config) -> Result<CheckRequestResponse, Error> {
        judge(request, config).await
    }

    async fn check_response(
        &self,
        response: &CheckResponseRequest,
        config: &Config,
    ) -> Result<CheckResponseResponse, Error> {
        let path = response.request.as_ref().map(|request| request.path.as_str()).unwrap_or_default();
        let seen = HeaderMutation::set("x-fake-response", response.status.to_string());
        Ok(match path {
            "/response-crash" => crate::crash(),
            "/response-hang" => std::future::pending().await,
            "/response-empty" => CheckResponseResponse::default(),
            "/response-crlf" => CheckResponseResponse::pass(vec![HeaderMutation::set("x-a", "a\r\nx-b: b")]),
            "/response-replace" => CheckResponseResponse::replace(Reply::text(418, "replaced")),
            "/response-replace-many" => CheckResponseResponse::replace(too_many_headers()),
            "/response-replace-owned" => CheckResponseResponse::replace(with_header("content-length", "0")),
            "/response-replace-crlf" => CheckResponseResponse::replace(with_header("location", "/\r\nset-cookie: x")),
            "/response-replace-huge" => CheckResponseResponse::replace(huge_reply()),
            "/response-replace-204" => CheckResponseResponse::replace(Reply::text(204, "a body")),
            "/response-remove" => CheckResponseResponse::pass(vec![seen, HeaderMutation::remove("x-upstream")]),
            _ => match config.text("mark") {
                Some(mark) => {
                    let order = HeaderMutation::append("x-response-order", mark.to_owned());
                    CheckResponseResponse::pass(vec![seen, order])
                }
                None => CheckResponseResponse::pass(vec![seen]),
            },
        })
    }
}

/// Waits until the test has made this file in the working directory.
pub(crate) async fn await_file(name: &str) -> std::io::Result<()> {
    while !std::fs::exists(name)? {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Judges a request.
pub(crate) async fn judge(request: &Request, config: &Config) -> Result<CheckRequestResponse, Error> {
    let mut asked = request.header("x-fake").map(String::from_utf8_lossy).unwrap_or_default().into_owned();
    let allow = CheckRequestResponse::allow;
    let set = |name: &str, value: &str| Ok(allow().mutate(HeaderMutation::set(name, value.to_owned())));
    let deny = |reply: Reply| {
        let verdict = Some(check_request_response::Verdict::Deny(reply));
        Ok(CheckRequestResponse { verdict, ..CheckRequestResponse::default() })
    };
    let deny_with = |name: &str, value: &str| deny(with_header(name, value));
    if let Some(millis) = asked.strip_prefix("sleep-") {
        tokio::time::sleep(Duration::from_millis(millis.parse()?)).await;
    }
    if let Some(millis) = asked.strip_prefix("crash-after-") {
        tokio::time::sleep(Duration::from_millis(millis.parse()?)).await;
        crate::crash();
    }
    if let Some(then) = asked.strip_prefix("hang-once-") {
        if std::fs::File::create_new("hung").is_ok() {
            std::future::pending().await
        }
        asked = then.to_owned();
    }
    if let Some(file) = asked.strip_prefix("await-") {
        eprintln!("asked to wait for {file}");
        await_file(file).await?;
    }
    match asked.as_str() {
        "crash" => crate::crash(),
        "crash-slowly" => crate::crash_slowly(),
        "crash-once" if std::fs::File::create_new("crashed").is_ok() => crate::crash(),
        "exit" => std::process::exit(0),
        "hang" => {
            eprintln!("asked to hang");
            std::future::pending().await
        }
        "block" => {
            // Every thread that there is.
            let block = || loop {
                std::thread::sleep(Duration::from_secs(3_600));
            };
            (0..8).for_each(|_| drop(tokio::spawn(async move { block() })));
            block()
        }
        "unless-broken" if std::fs::read_to_string("broken")? == std::process::id().to_string() => {
            return Err("it is broken".into());
        }
        "error" => return Err("asked to fail".into()),
        "empty" => return Ok(CheckRequestResponse::default()),
        "no-mutation" => return Ok(allow().mutate(HeaderMutation::default())),
        "crlf" => return set("x-a", "a\r\nx-b: b"),
        "nul" => return set("x-a", "a\0b"),
        "content-length" => return set("content-length", "5"),
        "transfer-encoding" => return set("transfer-encoding", "chunked"),
        "connection" => return set("connection", "close"),
        "host" => return set("host", "elsewhere"),
        "pseudo" => return set(":path", "/elsewhere"),
        "upper" => return set("X-Upper", "1"),
        "no-name" => return set("", "1"),
        "forwarded" => return set("x-forwarded-for", "1.2.3.4"),
        "request-id" => return set("x-request-id", "mine"),
        "remove-host" => return Ok(allow().mutate(HeaderMutation::remove("host"))),
        "many" => {
            let more = |verdict: CheckRequestResponse, n| verdict.mutate(HeaderMutation::append(format!("x-{n}"), "1"));
            return Ok((0..1_000).fold(allow(), more));
        }
        "huge-header" => return set("x-a", &"a".repeat(70_000)),
        "bad-response-header" => return Ok(allow().mutate_response(HeaderMutation::set("x-a", "a\r\nx-b: b"))),
        "status-99" => return deny(Reply::text(99, "")),
        "status-101" => return deny(Reply::text(101, "")),
        "status-600" => return deny(Reply::text(600, "")),
        "body-204" => return deny(Reply::text(204, "a body")),
        "deny-crlf" => return deny_with("location", "/\r\nset-cookie: x"),
        "deny-many" => return deny(too_many_headers()),
        "deny-content-length" => return deny_with("content-length", "0"),
        "huge-body" => return deny(huge_reply()),
        "teapot" => {
            return deny(Reply {
                status: 418,
                headers: vec![
                    Header::new("content-type", "text/x-fake"),
                    Header::new("x-fake-verdict", "first"),
                    Header::new("x-fake-verdict", "second"),
                    Header::new("x-bytes", vec![b'a', 0xff]),
                ],
                body: "short and stout".into(),
            });
        }
        "mutate" => {
            return Ok(allow()
                .mutate(HeaderMutation::set("x-set", "new"))
                .mutate(HeaderMutation::append("x-append", "last"))
                .mutate(HeaderMutation::remove("x-remove"))
                .mutate(HeaderMutation::set("x-bytes", vec![b'a', 0xff]))
                .mutate_response(HeaderMutation::set("x-upstream", "hidden"))
                .mutate_response(HeaderMutation::append("x-added", "1")));
        }
        _ => {}
    }
    if let Some(echo) = config.text("echo") {
        let id = request.header("x-id").map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        if id.parse::<u64>()?.is_multiple_of(5) {
            return Ok(CheckRequestResponse::deny(403, &id));
        }
        let shown = HeaderMutation::set(echo.to_owned(), id);
        return Ok(allow().mutate(shown.clone()).mutate_response(shown));
    }
    if let Some(denied) = config.text("deny_path") {
        if request.path.trim_end_matches('/') == denied {
            return Ok(CheckRequestResponse::deny(403, "fake: denied"));
        }
        // Shows what was judged.
        let query = if request.has_query { format!("?{}", request.query) } else { String::new() };
        return set("x-judged", &format!("{} {}{query}", request.method, request.path));
    }
    if request.header("user") != Some(b"admin") {
        return Ok(CheckRequestResponse::deny(403, "fake: denied"));
    }
    let mut verdict = allow();
    if asked == "report" {
        let report = report(request, config);
        verdict = verdict
            .mutate(HeaderMutation::set("x-seen", report.clone()))
            .mutate_response(HeaderMutation::set("x-seen", report));
    }
    if asked == "environment" {
        let names: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
        verdict = verdict.mutate(HeaderMutation::set("x-seen", json!(names).to_string()));
    }
    if let Some(mark) = config.text("mark") {
        verdict = verdict.mutate(HeaderMutation::append("x-order", mark.to_owned()));
    }
    // Shows whose verdict a request got.
    if let Some(id) = request.header("x-id") {
        verdict = verdict.mutate(HeaderMutation::set("x-echo", id.to_vec()));
    }
    Ok(verdict)
}

fn with_header(name: &str, value: &str) -> Reply {
    let mut reply = Reply::text(403, "no");
    reply.headers.push(Header::new(name, value.to_owned()));
    reply
}

/// One more than a reply may have.
fn too_many_headers() -> Reply {
    let headers = (0..101).map(|n| Header::new(format!("x-{n}"), "1")).collect();
    Reply { status: 403, headers, body: "no".into() }
}

/// Larger than any answer may be.
fn huge_reply() -> Reply {
    Reply { status: 403, headers: Vec::new(), body: vec![b'x'; 3 << 20].into() }
}

/// All that a plugin sees, as JSON that fits a header.
fn report(request: &Request, config: &Config) -> String {
    let headers: Vec<_> = request.headers.iter().map(|field| json!([field.name, hex(&field.value)])).collect();
    let end = |address: &Option<Address>| match address.as_ref().map(|address| &address.address) {
        None => json!("unset"),
        Some(None) => json!("unnamed"),
        Some(Some(address::Address::Socket(socket))) => json!([socket.ip, socket.port]),
        Some(Some(address::Address::UnixPath(path))) => json!(path),
    };
    json!({
        "method": request.method,
        "scheme": request.scheme,
        "authority": request.authority,
        "path": request.path,
        "query": request.has_query.then_some(&request.query),
        "protocol": request.protocol,
        "headers": headers,
        "peer": end(&request.peer),
        "local": end(&request.local),
        "tls": request.tls.as_ref().map(|tls| json!([tls.server_name, tls.alpn, tls.version])),
        "listener": request.listener,
        "route": request.route.as_ref().map(|route| json!([route.name, route.metadata])),
        "body": request.body.as_ref().map(|body| hex(body)),
        "config": config.value(),
    })
    .to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
