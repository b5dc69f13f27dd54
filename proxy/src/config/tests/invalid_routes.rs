//! Routes and upstreams that can't be.

use super::{LISTENER, Place};

#[test]
fn each_is_reported_at_its_place() {
    Place::new().check(LISTENER, CASES);
}

/// What follows a good listener, which is line 1.
const CASES: &[(&str, &[&str])] = &[
    (
        r"routes:
  - path: /
    filters: [auth]
    upstrem: http://127.0.0.1:9000
plugins:
  auth: {command: [python3, auth.py]}
",
        &["5:5 unknown field `upstrem` (did you mean `upstream`?)"],
    ),
    (
        r"routes:
  - path: /a
",
        &["3:5 missing field `upstream`"],
    ),
    (
        r"routes:
  - /a
  - upstream: app
",
        &[
            "3:5 an entry of `routes` must be a mapping, not a single value",
            "4:15 unknown upstream `app` (no upstreams are defined; add it under `upstreams:`)",
        ],
    ),
    (
        r"routes:
  - {path: /1, upstream: ap}
  - {path: /2, upstream: web}
upstreams:
  app: {endpoints: [127.0.0.1:1]}
",
        &["3:26 unknown upstream `ap` (did you mean `app`?)", "4:26 unknown upstream `web` (defined: app)"],
    ),
    (
        r#"routes:
  - {path: /0, upstream: "https://127.0.0.1:9000"}
  - {path: /1, upstream: "ftp://127.0.0.1:9000"}
  - {path: /2, upstream: "http://127.0.0.1"}
  - {path: /3, upstream: "http://127.0.0.1:0"}
  - {path: /4, upstream: "http://127.0.0.1:x"}
  - {path: /5, upstream: "http://127.0.0.1:9000/api"}
  - {path: /6, upstream: "http://user@127.0.0.1:1"}
  - {path: /7, upstream: "http://::1:9000"}
  - {path: /8, upstream: "http://[::1:9000"}
  - {path: /9, upstream: "http://[1.2.3.4]:9000"}
  - {path: /10, upstream: "http://a b:9000"}
  - {path: /11, upstream: "http://127.0.0.300:9000"}
  - {path: /12, upstream: "unix:app.sock"}
  - {path: /13, upstream: "/run/app.sock"}
  - {path: /14, upstream: "http:///run/app.sock"}
  - {path: /15, upstream: "127.0.0.1:+80"}
"#,
        &[
            "3:26 upstreams with `https://` are not built yet (only `http://` and `unix:`)",
            "4:26 unknown scheme `ftp` (only `http://` and `unix:`)",
            "5:26 `http://127.0.0.1` is not an endpoint (the port is missing: `http://127.0.0.1:80`)",
            "6:26 `http://127.0.0.1:0` is not an endpoint (the port must be 1 to 65535)",
            "7:26 `http://127.0.0.1:x` is not an endpoint (the port must be 1 to 65535)",
            "8:26 `http://127.0.0.1:9000/api` is not an endpoint (an endpoint has no path: requests keep theirs)",
            "9:26 `http://user@127.0.0.1:1` is not an endpoint (user and password are not supported)",
            "10:26 `http://::1:9000` is not an endpoint (an IPv6 address needs brackets: `http://[::1]:9000`)",
            "11:26 `http://[::1:9000` is not an endpoint (`]` is missing)",
            "12:26 `http://[1.2.3.4]:9000` is not an endpoint (not an IPv6 address in the brackets)",
            "13:27 `http://a b:9000` is not an endpoint (not an IP address or a DNS name)",
            "14:27 `http://127.0.0.300:9000` is not an endpoint (not an IP address or a DNS name)",
            "15:27 the path of a unix socket must be absolute (write it like `unix:/run/app.sock`)",
            "16:27 `/run/app.sock` is not an endpoint (write `unix:/run/app.sock`)",
            "17:27 `http:///run/app.sock` is not an endpoint (write `unix:/run/app.sock`)",
            "18:27 `127.0.0.1:+80` is not an endpoint (the port must be 1 to 65535)",
        ],
    ),
    (
        r"routes:
  - {host: http://a.example, path: /0, upstream: http://127.0.0.1:1}
  - {host: a.example:80, path: /1, upstream: http://127.0.0.1:1}
  - {host: a.example., path: /2, upstream: http://127.0.0.1:1}
  - {host: 'a.*', path: /3, upstream: http://127.0.0.1:1}
  - {host: '*a.example', path: /4, upstream: http://127.0.0.1:1}
  - {host: bücher.example, path: /5, upstream: http://127.0.0.1:1}
  - {host: a b, path: /6, upstream: http://127.0.0.1:1}
  - {host: '', path: /7, upstream: http://127.0.0.1:1}
  - {host: '*.', path: /8, upstream: http://127.0.0.1:1}
  - {host: 10.0.0.300, path: /9, upstream: http://127.0.0.1:1}
",
        &[
            "3:12 `http://a.example` is not a host (a host has no scheme and no path)",
            "4:12 `a.example:80` is not a host (hosts are matched without their port)",
            "5:12 `a.example.` is not a host (write it without the dot at the end)",
            "6:12 `a.*` is not a host (`*` may only be the whole first label: `*.example`)",
            "7:12 `*a.example` is not a host (`*` may only be the whole first label: `*.example`)",
            "8:12 `bücher.example` is not a host (write the ASCII form, which begins with `xn--`)",
            "9:12 `a b` is not a host (write it like `api.example`, `*.example` or `*`)",
            "10:12 `` is not a host (write it like `api.example`, `*.example` or `*`)",
            "11:12 `*.` is not a host (write it without the dot at the end)",
            "12:12 `10.0.0.300` is not a host (write it like `api.example`, `*.example` or `*`)",
        ],
    ),
    (
        r"routes:
  - {host: a, hosts: [b], upstream: http://127.0.0.1:1}
  - {hosts: [], upstream: http://127.0.0.1:1}
  - {hosts: a.example, upstream: http://127.0.0.1:1}
",
        &[
            "3:5 a route takes `host` or `hosts`, not both",
            r#"4:13 `hosts` is empty (write `["*"]` or remove the line for any host)"#,
            "5:13 `hosts` must be a list, not `a.example` (write `[a.example]`)",
        ],
    ),
    (
        r#"routes:
  - {path: api, upstream: http://127.0.0.1:1}
  - {path: /a?b, upstream: http://127.0.0.1:1}
  - {path: '/a#b', upstream: http://127.0.0.1:1}
  - {path: /api/*, upstream: http://127.0.0.1:1}
  - {path: /a//b, upstream: http://127.0.0.1:1}
  - {path: /a/../b, upstream: http://127.0.0.1:1}
  - {path: /a b, upstream: http://127.0.0.1:1}
  - {path: /ä, upstream: http://127.0.0.1:1}
  - {path: {regex: "/(a"}, upstream: http://127.0.0.1:1}
  - {path: {regex: "(?x) a #"}, upstream: http://127.0.0.1:1}
  - {path: {regex: "a{1000}{1000}{1000}"}, upstream: http://127.0.0.1:1}
  - {path: {regex: "a)(b"}, upstream: http://127.0.0.1:1}
  - {path: {exact: /a, prefix: /b}, upstream: http://127.0.0.1:1}
  - {path: {}, upstream: http://127.0.0.1:1}
  - {path: {exat: /a}, upstream: http://127.0.0.1:1}
  - {path: [/a], upstream: http://127.0.0.1:1}
  - {path: {exact: a}, upstream: http://127.0.0.1:1}
"#,
        &[
            "3:12 `api` can't be the path of a request (a path begins with `/`)",
            "4:12 `/a?b` can't be the path of a request (a path ends before the `?`)",
            "5:12 `/a#b` can't be the path of a request (a `#` never reaches a server)",
            "6:12 `/api/*` can't be the path of a request (`*` is not a wildcard here: a string is a prefix already; else use `regex`)",
            "7:12 `/a//b` can't be the path of a request (paths are normalised before they are matched: no `//`, `.` or `..`)",
            "8:12 `/a/../b` can't be the path of a request (paths are normalised before they are matched: no `//`, `.` or `..`)",
            "9:12 `/a b` can't be the path of a request (blanks and characters beyond ASCII are percent-encoded in a path)",
            "10:12 `/ä` can't be the path of a request (blanks and characters beyond ASCII are percent-encoded in a path)",
            "11:20 not usable as a regular expression: unclosed group",
            "12:20 not usable as a regular expression: it ends in a comment",
            "13:20 not usable as a regular expression: compiled, it takes more than 1MiB",
            "14:20 not usable as a regular expression: unopened group",
            "15:12 a path is one of `exact`, `prefix` and `regex`",
            "16:12 a path is one of `exact`, `prefix` and `regex`",
            "17:13 unknown field `exat` (did you mean `exact`?)",
            "18:5 the route `route-16` can never be reached (`route-15` matches the same requests before it)",
            "18:12 `path` must be a string or a mapping, not a list",
            "19:20 `a` can't be the path of a request (a path begins with `/`)",
        ],
    ),
    (
        r#"routes:
  - {methods: get, upstream: http://127.0.0.1:1}
  - {methods: [get, "G T", [POST]], upstream: http://127.0.0.1:1}
  - {methods: [], upstream: http://127.0.0.1:1}
"#,
        &[
            "3:15 `methods` must be a list, not `get` (write `[get]`)",
            "4:16 methods are upper case, unlike `get` (write `GET`)",
            "4:21 `G T` is not a method",
            "4:28 an entry of `methods` must be a string, not a list",
            "5:15 `methods` is empty (remove the line for any method)",
        ],
    ),
    (
        r#"routes:
  - upstream: http://127.0.0.1:1
    headers:
      x-a: {exact: a, prefix: b}
      x-b: {}
      x-c: {present: yes}
      x-d: {regex: "["}
      x-e: [a]
      X-A: b
      Connection: close
      "x f": g
      x-g:
      x-h: {exact: "a "}
      x-i: {prefx: a}
"#,
        &[
            "5:12 a header is matched by one of `exact`, `prefix`, `regex` and `present`",
            "6:12 a header is matched by one of `exact`, `prefix`, `regex` and `present`",
            "7:22 `present` must be `true` or `false`, not `yes` (write `true`)",
            "8:20 not usable as a regular expression: unclosed character class",
            "9:12 `x-e` must be a string or a mapping, not a list",
            "10:7 the header `X-A` is used twice (first written at 5:7)",
            "11:7 `connection` describes the connection or the framing, not the request",
            "12:7 `x f` is not a header name",
            "13:10 `x-g` has no value (write a string or a mapping, or remove the line)",
            "14:20 a header's value never begins or ends with a blank",
            "15:13 unknown field `prefx` (did you mean `prefix`?)",
        ],
    ),
    (
        r#"routes:
  - {upstream: http://127.0.0.1:1, timeout: 0s, retries: 2, upgrades: [h2c, "a b", websocket], metadata: {a: [b], c: ~}}
  - {upstream: http://127.0.0.1:1, path: /b, timeout: never, retries: -1, upgrades: websocket, metadata: [a]}
"#,
        &[
            "3:45 `timeout: 0s` is no time at all (more than 0)",
            "3:58 `retries: 2` is out of range (0 to 1)",
            "3:72 `h2c` would let requests past the filters (HTTP/2 needs no upgrade: clients speak it at once)",
            "3:77 `a b` is not a protocol's name",
            "3:110 `a` must be a string, not a list",
            "3:118 `c` has no value (write a string, or remove the line)",
            "4:55 `timeout: never` is not a duration (write it like `250ms`, `5s` or `1m30s`)",
            "4:71 `retries` must be 0 or more, not `-1`",
            "4:85 `upgrades` must be a list, not `websocket` (write `[websocket]`)",
            "4:106 `metadata` must be a mapping, not a list",
        ],
    ),
    (
        r"routes:
  - {name: a, path: /a, upstream: http://127.0.0.1:1}
  - {name: a, path: /b, upstream: http://127.0.0.1:1}
  - {name: '', path: /c, upstream: http://127.0.0.1:1}
  - {name: route-5, path: /d, upstream: http://127.0.0.1:1}
  - {path: /e, upstream: http://127.0.0.1:1}
",
        &[
            "4:12 the route's name `a` is used twice (first written at 3:12)",
            "5:12 a route's name is empty",
            "7:5 the route's name `route-5` is used twice (first written at 6:12)",
        ],
    ),
    (
        r"routes:
  - {path: /a, methods: [GET, PUT], headers: {x: {regex: a}}, upstream: http://127.0.0.1:1}
  - {name: late, path: /a/, hosts: ['*'], methods: [PUT, GET], headers: {X: {regex: a}}, upstream: http://127.0.0.1:2}
  - {path: /a, methods: [GET], upstream: http://127.0.0.1:1}
",
        &["4:5 the route `late` can never be reached (`route-1` matches the same requests before it)"],
    ),
    (
        r#"upstreams:
  app: {endpoints: []}
  web: {}
  "a b": {endpoints: [127.0.0.1:1]}
  c: {endpoints: [127.0.0.1:1, http://127.0.0.1:1, 127.0.0.1:0], balance: robin, protocol: http3, connect_timeout: 0s, idle_timeout: 5, max_idle: 1000000}
  d: {endpoints: 127.0.0.1:1, balance: least_requests}
  e: [127.0.0.1:1]
  f:
  g: {endpoint: [127.0.0.1:1]}
"#,
        &[
            "3:20 `endpoints` is empty (at least one is needed)",
            "4:8 missing field `endpoints`",
            "5:3 `a b` can't be the name of an upstream (letters, digits, `-`, `_` and `.`, at most 64)",
            "6:32 the endpoint `http://127.0.0.1:1` is used twice (first written at 6:19)",
            "6:52 `127.0.0.1:0` is not an endpoint (the port must be 1 to 65535)",
            "6:75 `balance` must be `round_robin`, `random` or `least_request`, not `robin`",
            "6:92 `protocol` must be `http1` or `http2`, not `http3` (did you mean `http1`?)",
            "6:116 `connect_timeout: 0s` is no time at all (more than 0)",
            "6:134 `idle_timeout: 5` has no unit (write `5s` or `5ms`)",
            "6:147 `max_idle: 1000000` is out of range (0 to 100000)",
            "7:18 `endpoints` must be a list, not `127.0.0.1:1` (write `[127.0.0.1:1]`)",
            "7:40 `balance` must be `round_robin`, `random` or `least_request`, not `least_requests` (did you mean `least_request`?)",
            "8:6 `e` must be a mapping, not a list",
            "9:4 `f` has no value (write a mapping, or remove the line)",
            "10:7 unknown field `endpoint` (did you mean `endpoints`?)",
        ],
    ),
];
