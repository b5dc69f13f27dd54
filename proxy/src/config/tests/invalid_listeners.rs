//! Settings for the whole proxy and listeners that can't be.

use super::{LISTENER, Place};

#[test]
fn settings_are_reported_at_their_place() {
    Place::new().check(LISTENER, SETTINGS);
}

#[test]
fn listeners_are_reported_at_their_place() {
    Place::new().check("", LISTENERS);
}

/// What follows a good listener, which is line 1.
const SETTINGS: &[(&str, &[&str])] = &[
    ("upstrem: {}\n", &["2:1 unknown field `upstrem` (did you mean `upstreams`?)"]),
    (
        "backend: {}\n",
        &[
            "2:1 unknown field `backend` [known here: runtime_dir, workers, drain_timeout, trusted_proxies, overload, listeners, routes, upstreams, plugins]",
        ],
    ),
    ("RunTimeDir: /x\n", &["2:1 unknown field `RunTimeDir` (did you mean `runtime_dir`?)"]),
    ("drainTimeout: 5s\n", &["2:1 unknown field `drainTimeout` (did you mean `drain_timeout`?)"]),
    ("drain_timeout: 5\n", &["2:16 `drain_timeout: 5` has no unit (write `5s` or `5ms`)"]),
    ("drain_timeout: -5s\n", &["2:16 `drain_timeout: -5s` is negative (a duration is 0 or more)"]),
    ("drain_timeout: 1.5s\n", &["2:16 `drain_timeout: 1.5s` has a fraction (use a smaller unit: `1500ms` for 1.5 s)"]),
    (
        "drain_timeout: soon\n",
        &["2:16 `drain_timeout: soon` is not a duration (write it like `250ms`, `5s` or `1m30s`)"],
    ),
    (
        "drain_timeout: 99999999999999999999s\n",
        &["2:16 `drain_timeout: 99999999999999999999s` is too long (at most 720h)"],
    ),
    ("drain_timeout: 721h\n", &["2:16 `drain_timeout: 721h` is too long (at most 720h)"]),
    ("drain_timeout:\n", &["2:14 `drain_timeout` has no value (write a duration like `5s`, or remove the line)"]),
    ("drain_timeout: [5s]\n", &["2:16 `drain_timeout` must be a duration like `5s`, not a list"]),
    ("drain_timeout: 1d\n", &["2:16 `drain_timeout: 1d` is not a duration (write it like `250ms`, `5s` or `1m30s`)"]),
    (
        "trusted_proxies: 10.0.0.0/8\n",
        &["2:18 `trusted_proxies` must be a list, not `10.0.0.0/8` (write `[10.0.0.0/8]`)"],
    ),
    (
        r#"trusted_proxies: [10.0.0.1/8, "::1/129", example, 10.0.0.0/x, "fd00::/8"]
"#,
        &[
            "2:19 `10.0.0.1/8` has bits set behind its prefix (write `10.0.0.0/8`)",
            "2:31 the prefix of `::1/129` must be 0 to 128",
            "2:42 `example` is not an IP address or network (write it like `10.0.0.0/8`, `192.0.2.7` or `fd00::/8`)",
            "2:51 the prefix of `10.0.0.0/x` must be 0 to 32",
        ],
    ),
    ("runtime_dir: ''\n", &["2:14 `runtime_dir` is empty"]),
];

/// Whole files.
const LISTENERS: &[(&str, &[&str])] = &[
    ("{}\n", &["1:1 missing field `listeners`"]),
    ("drain_timeout: 5s\n", &["1:1 missing field `listeners`"]),
    ("listener: []\n", &["1:1 unknown field `listener` (did you mean `listeners`?)"]),
    ("listeners: []\n", &["1:12 `listeners` is empty (at least one is needed)"]),
    ("listeners:\n", &["1:10 `listeners` has no value (write a list, or remove the line)"]),
    ("listeners: {address: 127.0.0.1:1}\n", &["1:12 `listeners` must be a list, not a mapping"]),
    ("listeners: 127.0.0.1:1\n", &["1:12 `listeners` must be a list, not `127.0.0.1:1` (write `[127.0.0.1:1]`)"]),
    (
        r"listeners:
  - {}
",
        &["2:5 missing field `address`"],
    ),
    (
        r"listeners:
  - 127.0.0.1:80
",
        &["2:5 an entry of `listeners` must be a mapping, not a single value"],
    ),
    (
        r"listeners:
  - adress: 127.0.0.1:80
",
        &["2:5 unknown field `adress` (did you mean `address`?)"],
    ),
    ("listeners: [{address: [1]}]\n", &["1:23 `address` must be a string, not a list"]),
    (
        r#"listeners:
  - address: localhost:8080
  - address: :8080
  - address: 8080
  - address: "*:8080"
  - address: http://127.0.0.1:8080
  - address: 127.0.0.1
  - address: ::1:8080
  - address: example.com:8080
  - address: 127.0.0.1:99999
  - address: /run/web.sock
  - address: unix:web.sock
  - address: web
"#,
        &[
            r#"2:14 `localhost:8080` is not an address to listen on (names are not resolved: write `127.0.0.1:8080` or `"[::1]:8080"`)"#,
            "3:14 `:8080` is not an address to listen on (write `0.0.0.0:8080` for every interface, `127.0.0.1:8080` for this host)",
            "4:14 `8080` is not an address to listen on (write `0.0.0.0:8080` or `127.0.0.1:8080`)",
            r#"5:14 `*:8080` is not an address to listen on (write `0.0.0.0:8080` or `"[::]:8080"` for every interface)"#,
            "6:14 `http://127.0.0.1:8080` is not an address to listen on (an address has no scheme: `127.0.0.1:8080`)",
            "7:14 `127.0.0.1` is not an address to listen on (the port is missing)",
            "8:14 `::1:8080` is not an address to listen on (the port is missing)",
            "9:14 `example.com:8080` is not an address to listen on (names are not resolved: write an IP address, as in `0.0.0.0:8080`)",
            "10:14 `127.0.0.1:99999` is not an address to listen on (the port must be 0 to 65535)",
            "11:14 `/run/web.sock` is not an address to listen on (write `unix:/run/web.sock`)",
            "12:14 the path of a unix socket must be absolute (write it like `unix:/run/app.sock`)",
            "13:14 `web` is not an address to listen on (write it like `127.0.0.1:8080` or `unix:/run/web.sock`)",
        ],
    ),
    (
        r"listeners:
  - address: unix:/run/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
  - address: unix:/run/
",
        &[
            "2:14 the path of a unix socket has 115 bytes (107 at most)",
            "3:14 the path of a unix socket is a directory's",
        ],
    ),
    (
        r"listeners:
  - {name: a, address: 127.0.0.1:80}
  - {name: b, address: 127.0.0.1:80}
  - {name: a, address: 127.0.0.1:81}
  - {address: unix:/a}
  - {address: unix:/a}
  - {name: '', address: 127.0.0.1:0}
  - {address: 127.0.0.1:0}
",
        &[
            "3:24 the address `127.0.0.1:80` is used twice (first written at 2:24)",
            "4:12 the listener's name `a` is used twice (first written at 2:12)",
            "6:15 the address `unix:/a` is used twice (first written at 5:15)",
            "7:12 a listener's name is empty",
        ],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    limits:
      header_timeout: 0s
      idle_timeout: 60
      max_header_bytes: 1KiB
      max_headers: 0
      max_connections: many
      max_streams: 0100
      max_hedaers: 5
",
        &[
            "4:23 `header_timeout: 0s` is no time at all (more than 0)",
            "5:21 `idle_timeout: 60` has no unit (write `60s` or `60ms`)",
            "6:25 `max_header_bytes: 1KiB` is out of range (8KiB to 1MiB)",
            "7:20 `max_headers: 0` is out of range (1 to 10000)",
            "8:24 `max_connections` must be a whole number, not `many`",
            "9:20 `max_streams` must be a number without leading zeros, not `0100` (write `100`)",
            "10:7 unknown field `max_hedaers` (did you mean `max_headers`?)",
        ],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    limits: {max_header_bytes: 32KB, max_headers: -1, max_connections: 99999999999999999999, max_streams: 1.5, tls_handshake_timeout: {s: 5}}
",
        &[
            "3:32 `max_header_bytes: 32KB` is not a size (write it like `64KiB`, `1MiB` or a number of bytes)",
            "3:51 `max_headers` must be 0 or more, not `-1`",
            "3:72 `max_connections` must be a smaller number, not `99999999999999999999`",
            "3:107 `max_streams` must be a whole number, not `1.5`",
            "3:135 `tls_handshake_timeout` must be a duration like `5s`, not a mapping",
        ],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    limits: {max_header_bytes: 99999999999999999999GiB, max_headers: 0x20, max_connections: 9999999999999999999999999999999999999999, max_streams: ~}
",
        &[
            "3:32 `max_header_bytes: 99999999999999999999GiB` is out of range (8KiB to 1MiB)",
            "3:93 `max_connections` must be a smaller number, not `9999999999999999999999999999999999999999`",
            "3:148 `max_streams` has no value (write a whole number, or remove the line)",
        ],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    tls: certs
",
        &["3:10 unknown plugin `certs` (no plugins are defined; add it under `plugins:`)"],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    tls: {}
",
        &["3:10 missing field `plugin`"],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    tls: {plugin: certs, names: [a, b, a], default: c, only_tls13: yes}
plugins:
  certs: {command: [python3, auth.py], contract: mosn}
",
        &[
            "3:19 plugin `certs` can't supply certificates (its contract is `mosn`, which has filters only)",
            "3:40 the bundle `a` is used twice (first written at 3:34)",
            "3:53 unknown bundle `c` (defined: a, b, a)",
            "3:68 `only_tls13` must be `true` or `false`, not `yes` (write `true`)",
        ],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    tls: [certs]
    filters: auth
",
        &[
            "3:10 `tls` must be a string or a mapping, not a list",
            "4:14 `filters` must be a list, not `auth` (write `[auth]`)",
        ],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    filters: [~, [auth], {plugn: auth}, {}, {header: {nam: User, value: x}}]
",
        &[
            "3:15 an entry of `filters` has no value (write a string or a mapping, or remove the line)",
            "3:18 an entry of `filters` must be a string or a mapping, not a list",
            "3:27 unknown field `plugn` (did you mean `plugin`?)",
            "3:41 a filter needs `plugin` or `header`",
            "3:55 unknown field `nam` (did you mean `name`?)",
        ],
    ),
    (
        r#"listeners:
  - address: 127.0.0.1:0
    filters:
      - header: {name: User}
      - header: {name: User, value: a, values: [b]}
      - header: {name: User, values: []}
      - header: {name: bad name, value: x}
      - header: {name: Host, value: x}
      - header: {name: Transfer-Encoding, value: x}
      - header: {name: User, value: "a\nb"}
      - header: {name: User, value: " a"}
      - header: {name: User, value: a, status: 200}
      - {header: {name: User, value: a}, timeout: 5s}
      - {header: {name: User, value: a}, plugin: auth}
plugins:
  auth: {command: [python3, auth.py]}
"#,
        &[
            "4:17 a header filter needs `value` or `values`",
            "5:17 a header filter takes `value` or `values`, not both",
            "6:38 `values` is empty, so nothing would pass",
            "7:24 `bad name` is not a header name",
            "8:24 the host is not matched as a header (use the route's `host`)",
            "9:24 `transfer-encoding` describes the connection or the framing, not the request",
            "10:37 a header's value can't hold control characters",
            "11:37 a header's value never begins or ends with a blank",
            "12:48 `status: 200` is out of range (400 to 599)",
            "13:9 `timeout` is for filters that ask a plugin; `header` asks none",
            "14:9 a filter is either `plugin` or `header`, not both",
        ],
    ),
    (
        r"listeners:
  - address: 127.0.0.1:0
    filters: [{plugin: auth, timeout: 100, on_failure: alow, max_body: 1GiB}, {plugin: auth, on_failure: ignore}]
plugins:
  auth: {command: [python3, auth.py]}
",
        &[
            "3:39 `timeout: 100` has no unit (write `100s` or `100ms`)",
            "3:56 `on_failure` must be `deny` or `allow`, not `alow` (did you mean `allow`?)",
            "3:72 `max_body: 1GiB` is out of range (1 to 64MiB)",
            "3:106 `on_failure` must be `deny` or `allow`, not `ignore`",
        ],
    ),
];
