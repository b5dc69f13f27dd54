//! Files that are no proper YAML, or more of it than a configuration needs.

use super::Place;

#[test]
fn each_is_reported_at_its_place() {
    Place::new().check("", CASES);
}

/// Whole files.
const CASES: &[(&str, &[&str])] = &[
    ("", &["0:0 the file is empty [the least is `listeners:` with one `- address: 127.0.0.1:8080`]"]),
    (
        "# nothing but a comment\n",
        &["0:0 the file is empty [the least is `listeners:` with one `- address: 127.0.0.1:8080`]"],
    ),
    ("~\n", &["0:0 the file is empty [the least is `listeners:` with one `- address: 127.0.0.1:8080`]"]),
    ("- a\n", &["1:1 the file must be a mapping, not a list"]),
    ("text\n", &["1:1 the file must be a mapping, not a single value"]),
    (
        "listeners:\n\t- address: 127.0.0.1:1\n",
        &[
            "2:2 not valid YAML: tabs disallowed within this context (block indentation) [YAML is indented with spaces, never with tabs]",
        ],
    ),
    (
        r"listeners:
  - address: [127.0.0.1:1
",
        &[
            "3:1 not valid YAML: while parsing a flow sequence, expected ',' or ']' [a quote or a bracket is not closed, or a comma is missing]",
        ],
    ),
    (
        r#"listeners:
  - address: "127.0.0.1:1
"#,
        &[
            "2:14 not valid YAML: while scanning a quoted scalar, found unexpected end of stream [a quote or a bracket is not closed, or a comma is missing]",
        ],
    ),
    (
        r"listeners:
  - address: a: b
",
        &[
            "2:15 not valid YAML: mapping values are not allowed in this context [a value with `: ` in it has to be quoted; else look at the indentation]",
        ],
    ),
    (
        r"listeners:
 - address: 127.0.0.1:1
  filters: []
",
        &[
            "3:3 not valid YAML: while parsing a block collection, did not find expected '-' indicator [look at the indentation of this line and of the one before]",
        ],
    ),
    (
        r"listeners:
  - address: [::1]:8080
",
        &[
            r#"2:19 not valid YAML: while parsing a block mapping, did not find expected key [an IPv6 address in brackets has to be quoted: "[::1]:8080"]"#,
        ],
    ),
    (
        "listeners: *all\n",
        &[
            "1:12 not valid YAML: while parsing node, found unknown anchor [an alias `*name` needs an anchor `&name` before it; a string that begins with `*` has to be quoted]",
        ],
    ),
    ("listeners: &all [*all]\n", &["1:18 the alias refers to a value that contains it"]),
    (
        r"listeners: []
---
listeners: []
",
        &["2:1 a second document begins here [a configuration is one document; `---` may stand only before it]"],
    ),
    (
        r"listeners: [{address: 127.0.0.1:0}]
routes: []
routes: []
",
        &["3:1 duplicate key `routes` (first written at 2:1)"],
    ),
    (
        r#"listeners: [{address: 127.0.0.1:0}]
routes: []
"routes": []
plugins: {}
plugins: {}
"#,
        &["3:1 duplicate key `routes` (first written at 2:1)", "5:1 duplicate key `plugins` (first written at 4:1)"],
    ),
    (
        r"listeners: [{address: 127.0.0.1:0}]
? [a, b]
: c
",
        &["2:3 a key must be a string, not a list or a mapping"],
    ),
    (
        r"listeners: [{address: 127.0.0.1:0}]
~: x
",
        &["2:1 a key is empty"],
    ),
    (
        r"listeners: [{address: 127.0.0.1:0}]
drain_timeout: !duration 5s
",
        &["2:16 the tag `!duration` is not supported"],
    ),
    (
        r"listeners: [{address: 127.0.0.1:0}]
routes:
  - <<: {path: /}
    upstream: http://127.0.0.1:9
",
        &["3:5 merge keys (`<<`) are not part of YAML 1.2 [write the entries out, or give the whole mapping an alias]"],
    ),
    (
        r#"listeners: [{address: 127.0.0.1:0}]
drain_timeout: "\0"
"#,
        &["2:16 `drain_timeout` contains a NUL character"],
    ),
    (
        "\u{feff}listeners: [{adress: 127.0.0.1:0}]\r\ndrain_timeuot: 5s\r\n",
        &[
            "1:14 unknown field `adress` (did you mean `address`?)",
            "2:1 unknown field `drain_timeuot` (did you mean `drain_timeout`?)",
        ],
    ),
    (
        "listeners: [{address: 127.0.0.1:0}]\rdrain_timeuot: 5s\r",
        &["2:1 unknown field `drain_timeuot` (did you mean `drain_timeout`?)"],
    ),
    (
        r"%YAML 1.2
---
listeners: [{address: 127.0.0.1:0}]
x: 1
...
",
        &[
            "4:1 unknown field `x` [known here: runtime_dir, workers, drain_timeout, trusted_proxies, overload, listeners, routes, upstreams, plugins]",
        ],
    ),
];
