//! Plugins that can't be.

use super::{LISTENER, Place};

#[test]
fn each_is_reported_at_its_place() {
    let place = Place::new();
    place.write("crlf", "#!/usr/bin/env python3\r\n", 0o755);
    place.write("noint", "#!/nowhere/python9\n", 0o755);
    place.write("noline", "print(1)\n", 0o755);
    place.write("nosearch", "#!/usr/bin/env no-such-python\n", 0o755);
    place.check(LISTENER, CASES);
}

#[test]
fn a_compiled_program_that_cannot_run_here_is_refused() {
    let place = Place::new();
    // Of machine 9999, and cut off: what else there is, `convert/elf.rs` tests.
    let mut header = b"\x7fELF\x02\x01".to_vec();
    header.resize(64, 0);
    header[18..20].copy_from_slice(&9999_u16.to_le_bytes());
    place.write("other", "", 0o755);
    std::fs::write(place.file().with_file_name("other"), &header).unwrap();
    place.write("cut", "\x7fELF\x02\x01", 0o755);
    let text = format!("{LISTENER}plugins:\n  a: {{command: [./other]}}\n  b: {{command: [./cut]}}\n");
    let found = place.problems(&text);
    let this = std::env::consts::ARCH;
    let expected = [
        format!(
            "3:17 `DIR/other` is a program for machine 9999, and this machine is {this} [build it for this machine]"
        ),
        "4:17 `DIR/cut` is no whole program [copy or build it again]".to_owned(),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_a_script_looks_for_is_looked_for_where_the_plugin_will() {
    let place = Place::new();
    place.write("bin/only-here", "#!/bin/sh\n", 0o755);
    place.write("script", "#!/usr/bin/env only-here\n", 0o755);
    let verdict =
        |more: &str| place.problems(&format!("{LISTENER}plugins: {{a: {{command: [./script]{more}}}}}\n")).len();
    assert_eq!((verdict(""), verdict(", env_pass: [LANG]"), verdict(", env: {A: b}")), (1, 1, 1));
    // What is in a PATH of its own is the operator's business.
    assert_eq!((verdict(", env_pass: [PATH]"), verdict(", env: {PATH: /nowhere}")), (0, 0));
}

#[test]
fn a_program_that_everybody_may_replace_is_refused_by_the_part_that_is_open() {
    let place = Place::new();
    place.write("open/bin/plugin", "#!/bin/sh\n", 0o755);
    place.write("file", "#!/bin/sh\n", 0o757);
    let mode = |name: &str, mode| {
        std::fs::set_permissions(place.file().with_file_name(name), std::os::unix::fs::PermissionsExt::from_mode(mode))
    };
    mode("open", 0o777).unwrap();
    std::os::unix::fs::symlink("open/bin/plugin", place.file().with_file_name("link")).unwrap();
    let refusal = |at, open, program| {
        format!(
            "{at} `DIR/{open}` can be written to by everyone, who could replace `DIR/{program}` [try: chmod o-w DIR/{open}]"
        )
    };
    let text = format!(
        "{LISTENER}plugins:\n  a: {{command: [./open/bin/plugin]}}\n  b: {{command: [./link]}}\n  c: {{command: [./file]}}\n"
    );
    let expected =
        [refusal("3:17", "open", "open/bin/plugin"), refusal("4:17", "open", "link"), refusal("5:17", "file", "file")];
    assert_eq!(place.problems(&text), expected);
    // As directories for temporary files are.
    mode("open", 0o1777).unwrap();
    mode("file", 0o755).unwrap();
    assert_eq!(place.problems(&text), Vec::<String>::new());
}

/// What follows a good listener, which is line 1.
const CASES: &[(&str, &[&str])] = &[
    (
        r"plugins:
  auth: {}
  audit: {comand: [python3]}
  b: [python3, auth.py]
  c:
",
        &[
            "3:9 missing field `command` (or `address`, for a plugin that runs already)",
            "4:11 unknown field `comand` (did you mean `command`?)",
            "5:6 `b` must be a mapping, not a list",
            "6:4 `c` has no value (write a mapping, or remove the line)",
        ],
    ),
    (
        r#"plugins:
  "a b": {command: [python3]}
  ../x: {command: [python3]}
  nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn: {command: [python3]}
  '': {command: [python3]}
"#,
        &[
            "3:3 `a b` can't be the name of a plugin (letters, digits, `-` and `_`, at most 64)",
            "4:3 `../x` can't be the name of a plugin (letters, digits, `-` and `_`, at most 64)",
            "5:3 `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn` can't be the name of a plugin (letters, digits, `-` and `_`, at most 64)",
            "6:3 `` can't be the name of a plugin (letters, digits, `-` and `_`, at most 64)",
        ],
    ),
    (
        r"plugins:
  a: {command: python3 auth.py --fast}
  b: {command: []}
  c: {command: ['']}
  d: {command: [python3, [x]]}
  e: {command: {program: x}}
",
        &[
            "3:16 `command` must be a list of program and arguments, not a string (write `[python3, auth.py, --fast]`)",
            "4:16 `command` is empty (write it like `[python3, auth.py]`)",
            "5:17 the program's name is empty",
            "6:26 an entry of `command` must be a string, not a list",
            "7:16 `command` must be a string or a list, not a mapping",
        ],
    ),
    (
        r"plugins:
  a: {command: [phyton3]}
  b: {command: [./missing]}
  c: {command: [./auth.py]}
  d: {command: [bin]}
  e: {command: [./bin]}
  f: {command: [python3, missing.py]}
  g: {command: [java, -Xmx64m, -jar, missing.jar]}
  h: {command: [auth.py]}
",
        &[
            "3:17 `phyton3` is not in PATH [install it, or write its path]",
            "4:17 `DIR/missing` does not exist",
            "5:17 `DIR/auth.py` is not executable [try: chmod +x DIR/auth.py]",
            "6:17 `bin` is not in PATH [install it, or write its path]",
            "7:17 `DIR/bin` is not a file",
            "8:26 `DIR/missing.py` does not exist",
            "9:38 `DIR/missing.jar` does not exist",
            "10:17 `auth.py` is not in PATH [the current directory is not searched: write `./auth.py`]",
        ],
    ),
    (
        r"plugins:
  a: {command: [./crlf]}
  b: {command: [./noint]}
  c: {command: [./noline]}
  d: {command: [./nosearch]}
",
        &[
            r#"3:17 the `#!` line of `DIR/crlf` ends with a Windows line end, so `/usr/bin/env` is not found [try: sed -i 's/\r$//' DIR/crlf]"#,
            "4:17 `DIR/noint` needs `/nowhere/python9`, which does not exist [install the interpreter, or correct the script's `#!` line]",
            "5:17 `DIR/noline` is a script without a `#!` line [begin it with a line like `#!/usr/bin/env python3`, or name the interpreter in `command`]",
            "6:17 `DIR/nosearch` needs `no-such-python`, which is not in the plugin's PATH, /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin [install it there, hand on the proxy's with `env_pass: [PATH]`, or write its path in the `#!` line]",
        ],
    ),
    (
        r"plugins:
  a: {command: [./bin/python3], cwd: missing}
  b: {command: [python3], cwd: auth.py}
  c: {command: [python3], cwd: []}
",
        &[
            "3:38 the directory `DIR/missing` does not exist",
            "4:32 the directory `DIR/auth.py` is not a directory",
            "5:32 `cwd` must be a string, not a list",
        ],
    ),
    (
        r#"plugins:
  a: {command: [python3], env: {1A: x, PLUGIN_MIN_PORT: 1, PALISADE_PLUGIN: x, MOSN_PLUGIN: x, "A=B": c, A: [x], B: ~}}
"#,
        &[
            "3:40 `PLUGIN_MIN_PORT` belongs to the handshake (the proxy sets it itself where it is needed)",
            "3:60 `PALISADE_PLUGIN` belongs to the handshake (the proxy sets it itself where it is needed)",
            "3:80 `MOSN_PLUGIN` belongs to the handshake (the proxy sets it itself where it is needed)",
            "3:96 `A=B` is not the name of a variable",
            "3:109 `A` must be a string, not a list",
            "3:117 `B` has no value (write a string, or remove the line)",
        ],
    ),
    (
        r#"plugins:
  a: {command: [python3], env: {A: b}, env_pass: [A, PLUGIN_X, LANG, LANG, "", {}]}
  b: {command: [python3], env_pass: LANG, env: [A=b]}
"#,
        &[
            "3:51 `A` is in `env` already",
            "3:54 `PLUGIN_X` belongs to the handshake (the proxy sets it itself where it is needed)",
            "3:70 the variable `LANG` is used twice (first written at 3:64)",
            "3:76 `` is not the name of a variable",
            "3:80 an entry of `env_pass` must be a string, not a mapping",
            "4:37 `env_pass` must be a list, not `LANG` (write `[LANG]`)",
            "4:48 `env` must be a mapping, not a list",
        ],
    ),
    (
        r"plugins:
  a: {command: [python3], contract: mosm}
  b: {command: [python3], contract: grpc}
  c: {command: [python3], required: no}
  d: {command: [python3], allow_remote_tcp: 1, auto_mtls: auto}
  e: {command: [python3], timeout: 250, on_failure: open}
  f: {command: [python3, -l, '{socket}', '{port}']}
  g: {command: [python3, -l, 'unix:{socket}'], auto_mtls: true}
",
        &[
            "3:37 `contract` must be `palisade` or `mosn`, not `mosm` (did you mean `mosn`?)",
            "4:37 `contract` must be `palisade` or `mosn`, not `grpc`",
            "5:37 `required` must be `true` or `false`, not `no` (write `false`)",
            "6:45 `allow_remote_tcp` must be `true` or `false`, not `1`",
            "6:59 `auto_mtls` must be `true` or `false`, not `auto`",
            "7:36 `timeout: 250` has no unit (write `250s` or `250ms`)",
            "7:53 `on_failure` must be `deny` or `allow`, not `open`",
            "8:16 `command` has both `{socket}` and `{port}` (the plugin can be told one place only)",
            "9:59 `auto_mtls` needs the handshake line (a command with `{socket}` or `{port}` prints none)",
        ],
    ),
    (
        r"plugins:
  a: {command: [python3], health: {interval: 0s, timeout: x, failures: 0}, restart: {initial: 1m, max: 1s}, stop_timeout: 5}
  b: {command: [python3], restart: {initial: 1m, max: soon, crash_loop_after: 0, reset_afer: 1m}}
  c: {command: [python3], handshake_timeout: 0s, ready_timeout: -1s}
  d: {command: [python3], restart: {policy: on-failure, multiplier: 11, jitter: 20, window: 1m}}
  e: {command: [python3], restart: {jitter: 101%, max_restarts: 0, window: 0s}}
  f: {command: [python3], restart: {jitter: +5%, max_restart: 3, window: 1m}}
",
        &[
            "3:46 `interval: 0s` is no time at all (more than 0)",
            "3:59 `timeout: x` is not a duration (write it like `250ms`, `5s` or `1m30s`)",
            "3:72 `failures: 0` is out of range (1 to 100)",
            "3:85 `initial` is longer than `max`",
            "3:123 `stop_timeout: 5` has no unit (write `5s` or `5ms`)",
            "4:55 `max: soon` is not a duration (write it like `250ms`, `5s` or `1m30s`)",
            "4:79 `crash_loop_after: 0` is out of range (1 to 1000)",
            "4:82 unknown field `reset_afer` (did you mean `reset_after`?)",
            "5:46 `handshake_timeout: 0s` is no time at all (more than 0)",
            "5:65 `ready_timeout: -1s` is negative (a duration is 0 or more)",
            "6:45 `policy` must be `always`, `on_failure` or `never`, not `on-failure` (did you mean `on_failure`?)",
            "6:69 `multiplier: 11` is out of range (1 to 10)",
            "6:81 `jitter: 20` is not a share (write it like `20%`, `0%` to `100%`)",
            "6:93 `window` counts nothing without `max_restarts`",
            "7:45 `jitter: 101%` is not a share (write it like `20%`, `0%` to `100%`)",
            "7:65 `max_restarts: 0` is out of range (1 to 1000)",
            "7:76 `window: 0s` is no time at all (more than 0)",
            "8:45 `jitter: +5%` is not a share (write it like `20%`, `0%` to `100%`)",
            "8:50 unknown field `max_restart` (did you mean `max_restarts`?)",
        ],
    ),
    (
        r"plugins:
  a: {command: [python3], config: [a]}
  b: {command: [python3], config: text}
  c: {command: [python3], config: }
",
        &[
            "3:35 `config` must be a mapping",
            "4:35 `config` must be a mapping",
            "5:33 `config` has no value (write a mapping, or remove the line)",
        ],
    ),
    (
        r"plugins:
  a:
    command: [python3]
    config:
      small: 9007199254740992
      large: 9007199254740993
      negative: -9007199254740993
      huge: 99999999999999999999999999999999999999999
      mode: 0644
      deep: [{inf: .inf}, .nan]
      date: 2024-01-01
      no: no
      a: 1
      a: 2
",
        &[
            "7:14 the number is beyond 2^53 (plugins would get another one: write a string)",
            "8:17 the number is beyond 2^53 (plugins would get another one: write a string)",
            "9:13 the number is beyond 2^53 (plugins would get another one: write a string)",
            "10:13 the number could be octal or decimal (write it without zeros, with `0o`, or quoted)",
            "11:20 the number is not finite (quote it if a string is meant)",
            "11:27 the number is not finite (quote it if a string is meant)",
            "15:7 duplicate key `a` (first written at 14:7)",
        ],
    ),
    (
        r"plugins:
  a: {command: [python3], config: {large: 9007199254740993, deep: [{inf: .inf}, .nan], mode: 0644, ok: [0o644, 0x1F, 1e3, 08.5, no]}}
",
        &[
            "3:43 the number is beyond 2^53 (plugins would get another one: write a string)",
            "3:74 the number is not finite (quote it if a string is meant)",
            "3:81 the number is not finite (quote it if a string is meant)",
            "3:94 the number could be octal or decimal (write it without zeros, with `0o`, or quoted)",
        ],
    ),
    (
        r"plugins:
  a: {command: [python3, auth.py], checksum: md5:1}
  b: {command: [python3, auth.py], checksum: {program: sha256:12, files: {audit.py: x, python3: x}}}
  c: {command: [python3, auth.py], checksum: {}}
  d: {command: [python3, auth.py], checksum: {programm: x}}
",
        &[
            "3:46 a checksum is `sha256:` and 64 hexadecimal digits (`palisade plugin pin` finds it out)",
            "4:56 a checksum is `sha256:` and 64 hexadecimal digits (`palisade plugin pin` finds it out)",
            "4:75 `audit.py` is not an argument of `command` (write it as it is written there)",
            "4:85 a checksum is `sha256:` and 64 hexadecimal digits (`palisade plugin pin` finds it out)",
            "4:88 `python3` is not an argument of `command` (write it as it is written there)",
            "4:97 a checksum is `sha256:` and 64 hexadecimal digits (`palisade plugin pin` finds it out)",
            "5:46 `checksum` names nothing (`program`, `files`, or both)",
            "6:47 unknown field `programm` (did you mean `program`?)",
        ],
    ),
    (
        r"plugins:
  a: {command: [python3], sandbox: hard}
  b: {command: [python3], sandbox: {profile: hardened, user: nobody-of-that-name, capabilities: [net_bind_servic]}}
  c: {command: [python3], sandbox: {group: '0', read: [none, ''], connect: [0, 70000], deny: [mounts]}}
  d: {command: [python3], sandbox: {networks: none, limits: {memory: 1, open_files: 1, cpu_time: 0s, x: 1}}}
  e: {command: [python3], sandbox: {cgroup: {memory: 1, cpu: 0.5, pids: 0, io: 1}}}
  f: {command: [python3], sandbox: {cgroup: {cpu: 0%}}}
",
        &[
            "3:36 `sandbox` must be `none`, `default` or `hardened`, not `hard`",
            "4:62 no user is called `nobody-of-that-name`",
            "4:98 unknown capability `net_bind_servic` (did you mean `CAP_NET_BIND_SERVICE`?)",
            "5:44 `group` without `user` (name the user as well)",
            "5:56 `DIR/none` does not exist",
            "5:62 the path is empty",
            "5:77 not a port (1 to 65535)",
            "5:80 not a port (1 to 65535)",
            "5:95 an entry of `deny` must be `debug`, `mount`, `kernel`, `namespace`, `raw_socket`, `keyring`, `clock`, `admin` or `exec`, not `mounts` (did you mean `mount`?)",
            "6:37 unknown field `networks` (did you mean `network`?)",
            "6:70 `memory: 1` is out of range (1MiB to 1024GiB)",
            "6:85 `open_files: 1` is out of range (8 to 1073741824)",
            "6:98 `cpu_time: 0s` is no time at all (more than 0)",
            "6:102 unknown field `x` [known here: memory, open_files, processes, file_size, cpu_time]",
            "7:54 `memory: 1` is out of range (1MiB to 1024GiB)",
            "7:62 `cpu: 0.5` is not a share (write it like `20%`, `1%` to `100000%`)",
            "7:73 `pids: 0` is out of range (1 to 4194304)",
            "7:76 unknown field `io` [known here: memory, cpu, pids]",
            "8:51 `cpu: 0%` is not a share (write it like `20%`, `1%` to `100000%`)",
        ],
    ),
    (
        r"plugins:
  a: {address: 'unix:/run/a', command: [python3], cwd: ., env: {}, env_pass: [], checksum: x, sandbox: none}
  b: {address: 'unix:/run/a', instances: 2, handshake_timeout: 1s, auto_mtls: true, health: {stopped_timeout: 1s}}
  c: {address: 'unix:/run/a', socket_group: 0, stop_timeout: 1s, peer_user: nobody-of-that-name, adress: x}
  d: {command: [python3], peer_user: root, socket_group: no-group-of-that-name}
  e: {address: 'unix:run/a'}
  f: {address: 'tcp:localhost:9000'}
  g: {address: '127.0.0.1:9000'}
  h: {address: 'tcp:0.0.0.0:9000'}
  i: {address: 'tcp:127.0.0.1:0'}
  j: {address: 'tcp:10.0.0.5:9000'}
  k: {address: 'tcp:10.0.0.5:9000', allow_remote_tcp: true, peer_user: root}
  l: {adress: 'unix:/run/a'}
",
        &[
            "3:40 `command` is for plugins that the proxy starts (this one has an `address`)",
            "3:56 `cwd` is for plugins that the proxy starts (this one has an `address`)",
            "3:64 `env` is for plugins that the proxy starts (this one has an `address`)",
            "3:78 `env_pass` is for plugins that the proxy starts (this one has an `address`)",
            "3:92 `checksum` is for plugins that the proxy starts (this one has an `address`)",
            "3:92 a checksum is `sha256:` and 64 hexadecimal digits (`palisade plugin pin` finds it out)",
            "3:104 `sandbox` is for plugins that the proxy starts (this one has an `address`)",
            "4:42 `instances` is for plugins that the proxy starts (this one has an `address`)",
            "4:64 `handshake_timeout` is for plugins that the proxy starts (this one has an `address`)",
            "4:79 `auto_mtls` is for plugins that the proxy starts (this one has an `address`)",
            "4:111 `stopped_timeout` is for plugins that the proxy starts (this one has an `address`)",
            "5:45 `socket_group` is for plugins that the proxy starts (this one has an `address`)",
            "5:62 `stop_timeout` is for plugins that the proxy starts (this one has an `address`)",
            "5:77 no user is called `nobody-of-that-name`",
            "5:98 unknown field `adress` (did you mean `address`?)",
            "6:38 `peer_user` without `address`",
            "6:58 no group is called `no-group-of-that-name`",
            "7:16 the path of a unix socket must be absolute (write it like `unix:/run/app.sock`)",
            "8:16 `tcp:localhost:9000` is not the address of a plugin (write it like `unix:/run/auth.sock` or `tcp:127.0.0.1:9000`)",
            "9:16 `127.0.0.1:9000` is not the address of a plugin (write it like `unix:/run/auth.sock` or `tcp:127.0.0.1:9000`)",
            "10:16 `tcp:0.0.0.0:9000` is for listening only (write where to connect to)",
            "11:16 `tcp:127.0.0.1:0` is for listening only (write where to connect to)",
            "12:16 `tcp:10.0.0.5:9000` is not a loopback address (`allow_remote_tcp: true` lifts this: in clear text, to whoever has that address)",
            "13:72 who listens on another machine can't be seen (remove `peer_user`)",
            "14:7 unknown field `adress` (did you mean `address`?)",
        ],
    ),
    (
        "plugins:\n  a: {command: [python3], hedge_after: 20ms}\n",
        &["3:40 `hedge_after` needs a second instance to ask (write `instances: 2` or more beside it)"],
    ),
    (
        r"plugins:
  a: {command: [python3], sand: hardened}
",
        &[
            "3:27 unknown field `sand` [known here: command, address, peer_user, cwd, env, env_pass, checksum, sandbox, socket_group, contract, owns, instances, max_calls, max_queue, quarantine, hedge_after, config, timeout, on_failure, required, handshake_timeout, ready_timeout, allow_remote_tcp, auto_mtls, health, restart, drain_timeout, stop_timeout, probation, exit_reports]",
        ],
    ),
];
