//! Landlock: which files may be reached, which TCP ports, and nobody outside signalled or traced.
//!
//! Rules are about inodes, not names: so they are made before mounts hide anything, and count wherever a file is to be
//! found afterwards.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::helper::{Missing, Plan, Trouble};
use super::{Files, Network, Sandbox};

/// Truncation is covered from here on; less would let a plugin empty what it can't write.
const FILES: ABI = ABI::V3;
const PORTS: ABI = ABI::V4;
const SCOPES: ABI = ABI::V6;

/// What runtimes read: libraries, and what resolves names, zones, certificates and users.
const READ: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/java",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
    "/dev/random",
    "/dev/urandom",
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
];
/// Configurations of runtimes, by how their names begin.
const READ_LIKE: &[(&str, &str)] = &[("/etc", "java"), ("/etc", "python")];
const READ_AND_WRITE: &[&str] = &["/dev/null", "/dev/zero", "/dev/full"];
/// Dynamic loaders: the kernel executes them along with programs.
const LOADERS: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// A ruleset that is made, and not in force yet.
#[derive(Debug)]
pub(super) struct Rules {
    created: RulesetCreated,
    with_files: bool,
    with_ports: bool,
}

/// The ruleset of a plan; `None` where it asks for nothing that Landlock does.
pub(super) fn prepare(plan: &Plan, missing: &mut Missing) -> Result<Option<Rules>, Trouble> {
    let sandbox = &plan.sandbox;
    let hard = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let mut known = |wanted: bool, tried: Result<Ruleset, RulesetError>, what: &str, linux: &str| {
        let needs = format!("Landlock as of Linux {linux}");
        let tried =
            if wanted { tried.map_err(|_| Trouble::missing(format!("`{what}`"), &needs)) } else { return Ok(false) };
        missing.tolerate(tried).map(|tried| tried.is_some())
    };
    let files = sandbox.files.as_ref();
    let with_files = known(files.is_some(), hard().handle_access(AccessFs::from_all(FILES)), "files", "6.2")?;
    let with_ports = known(ports(sandbox).is_some(), hard().handle_access(AccessNet::from_all(PORTS)), "tcp", "6.7")?;
    let with_scopes = known(sandbox.scoped, hard().scope(Scope::from_all(SCOPES)), "isolate", "6.12")?;
    let mut ruleset = hard();
    if with_files {
        ruleset = ruleset.handle_access(AccessFs::from_all(FILES)).map_err(failed)?;
    }
    if with_ports {
        ruleset = ruleset.handle_access(AccessNet::from_all(PORTS)).map_err(failed)?;
    }
    if with_scopes {
        ruleset = ruleset.scope(Scope::from_all(SCOPES)).map_err(failed)?;
    }
    if !(with_files || with_ports || with_scopes) {
        return Ok(None);
    }
    let mut created = ruleset.create().map_err(failed)?;
    if let Some(files) = files.filter(|_| with_files) {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let like = READ_LIKE.iter().flat_map(|(dir, start)| beginning(Path::new(dir), start));
        let own = command_files(plan).into_iter();
        let more = files.read.iter().map(PathBuf::from);
        for path in READ.iter().map(PathBuf::from).chain(like).chain(own).chain(more) {
            created = allow(created, &path, read)?;
        }
        for path in READ_AND_WRITE {
            created = allow(created, Path::new(path), AccessFs::ReadFile | AccessFs::WriteFile)?;
        }
        for path in [&plan.dir].into_iter().chain(&files.write) {
            created = allow(created, Path::new(path), writing())?;
        }
        let loaders = LOADERS.iter().flat_map(|dir| beginning(Path::new(dir), "ld-"));
        let programs = programs(Path::new(&plan.path)).into_iter();
        for path in programs.chain(loaders).chain(files.execute.iter().map(PathBuf::from)) {
            created = allow(created, &path, read | AccessFs::Execute)?;
        }
    }
    for (ports, access) in ports(sandbox).filter(|_| with_ports).into_iter().flatten() {
        for port in ports {
            created = created.add_rule(NetPort::new(*port, access)).map_err(failed)?;
        }
    }
    Ok(Some(Rules { created, with_files, with_ports }))
}

/// What has to be seen where the rest is hidden: all that may be reached.
pub(super) struct Given {
    pub(super) paths: Vec<PathBuf>,
    /// Those that may be written, with what is below them; `None`: there are no bounds.
    writable: Option<Vec<PathBuf>>,
}

impl Given {
    /// To be made before anything is hidden.
    pub(super) fn by(plan: &Plan) -> Self {
        let files = plan.sandbox.files.as_ref();
        let listed = |list: fn(&Files) -> &Vec<OsString>| files.into_iter().flat_map(list).map(PathBuf::from);
        let read = command_files(plan).into_iter().chain(listed(|it| &it.read)).chain(listed(|it| &it.execute));
        let writable = places(listed(|it| &it.write));
        let paths = places(read).into_iter().chain(writable.iter().cloned()).collect();
        Self { paths, writable: files.map(|_| writable) }
    }

    /// All that may be written; `None`: there are no bounds.
    pub(super) fn writable(&self) -> Option<&[PathBuf]> {
        self.writable.as_deref()
    }

    pub(super) fn is_writable(&self, path: &Path) -> bool {
        self.writable.as_ref().is_none_or(|writable| writable.iter().any(|dir| path.starts_with(dir)))
    }
}

/// From the working directory, as the plugin will name them, and as they are without symbolic links.
fn places(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let paths: Vec<_> = paths.map(|path| std::path::absolute(&path).unwrap_or(path)).collect();
    let real: Vec<_> = paths.iter().filter_map(|path| path.canonicalize().ok()).collect();
    paths.into_iter().chain(real).collect()
}

impl Rules {
    /// Whether they bound ports.
    pub(super) fn with_ports(&self) -> bool {
        self.with_ports
    }

    /// The directories for temporary files, which are new.
    pub(super) fn allow_temporary(self) -> Result<Self, Trouble> {
        if !self.with_files {
            return Ok(self);
        }
        let created = allow(self.created, Path::new("/tmp"), writing())?;
        Ok(Self { created, ..self })
    }

    /// Puts the rules in force, for good.
    pub(super) fn restrict(self) -> Result<(), Trouble> {
        self.created.restrict_self().map(drop).map_err(failed)
    }
}

/// Everything but executing and making devices.
fn writing() -> BitFlags<AccessFs> {
    AccessFs::from_all(FILES) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock)
}

/// Where there is no network, there is nothing to restrict.
fn ports(sandbox: &Sandbox) -> Option<[(&std::collections::BTreeSet<u16>, AccessNet); 2]> {
    let tcp = sandbox.tcp.as_ref().filter(|_| sandbox.network == Network::Host)?;
    Some([(&tcp.connect, AccessNet::ConnectTcp), (&tcp.bind, AccessNet::BindTcp)])
}

/// Files that the command needs to be read: the program, its installation, and arguments that are files.
pub(super) fn command_files(plan: &Plan) -> Vec<PathBuf> {
    let program = Path::new(&plan.path);
    let mut files = programs(program);
    let real = program.canonicalize().ok();
    files.extend([Some(program), real.as_deref()].into_iter().flatten().flat_map(installation));
    // The working directory is the plugin's already.
    files.extend(plan.arguments.iter().skip(1).map(PathBuf::from).filter(|path| path.is_file()));
    files
}

/// Where the runtime that a program belongs to is installed, if it says so: a virtual environment, a JDK, a Python. Of
/// that, its libraries only, for it may share its place with whatever else there is: that of `/bin` is the whole system's,
/// that of `~/.local/bin` has all that a user's programs remember.
fn installation(program: &Path) -> Vec<PathBuf> {
    let root = || program.parent().filter(|dir| dir.ends_with("bin"))?.parent().filter(|root| root.parent().is_some());
    let Some(root) = root() else { return Vec::new() };
    let has = |name: &str| root.join(name);
    if has("pyvenv.cfg").is_file() || has("lib/modules").is_file() || has("conda-meta").is_dir() {
        return vec![root.to_owned()];
    }
    let libraries = ["lib", "lib64"].map(|name| root.join(name));
    libraries.into_iter().filter(|dir| beginning(dir, "python").next().is_some()).collect()
}

/// A program, and the interpreter that its first line names.
fn programs(program: &Path) -> Vec<PathBuf> {
    let interpreter = || {
        let mut line = Vec::new();
        let file = fs::File::open(program).ok()?.take(256);
        BufReader::new(file).read_until(b'\n', &mut line).ok()?;
        let line = line.strip_prefix(b"#!")?.trim_ascii();
        let name = line.split(u8::is_ascii_whitespace).next()?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(name)))
    };
    [Some(program.to_owned()), interpreter()].into_iter().flatten().collect()
}

fn beginning(dir: &Path, start: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(move |entry| entry.file_name().as_bytes().starts_with(start.as_bytes())).map(|entry| entry.path())
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, Trouble> {
    // What lives in memory only has no place in the hierarchy of files, and needs no rule.
    let Some(file) = path.canonicalize().ok().and_then(|_| PathFd::new(path).ok()) else { return Ok(rules) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(FILES) };
    if access.is_empty() {
        return Ok(rules);
    }
    rules.add_rule(PathBeneath::new(file, access)).map_err(failed)
}

fn failed(error: RulesetError) -> Trouble {
    Trouble::plain(format!("Landlock: {}", crate::report::chain(&error)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn an_installation_is_given_and_not_what_stands_beside_it() {
        // On most systems it is a link to `/usr/bin`, beside `/lib/python3`.
        assert_eq!(installation(Path::new("/bin/sh")), [] as [PathBuf; 0]);
        let dir = tempfile::tempdir().unwrap();
        let root = |name: &str, files: &[&str]| {
            let root = dir.path().join(name);
            for file in files.iter().chain(&["bin/program"]) {
                fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
                fs::write(root.join(file), "").unwrap();
            }
            root
        };
        let of = |root: &Path| installation(&root.join("bin/program"));
        let home = root("home/.local", &["lib/python3.11/os.py", "share/keyrings/login"]);
        assert_eq!(of(&home), [home.join("lib")]);
        for marked in ["pyvenv.cfg", "lib/modules", "conda-meta/history"] {
            let root = root(marked, &[marked]);
            assert_eq!(of(&root), std::slice::from_ref(&root), "{marked}");
        }
        assert_eq!(of(&root("plain", &["lib/other.so"])), [] as [PathBuf; 0]);
        assert_eq!(installation(Path::new("program")), [] as [PathBuf; 0]);
    }
}
