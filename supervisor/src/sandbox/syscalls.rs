//! A seccomp filter that denies classes of system calls.
//!
//! A list of what is denied, not of what is allowed: runtimes use new calls with every release, and a plugin that dies
//! of one after an update is no gain. What is denied fails with EPERM, which programs know how to take.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::SyscallClass;
use super::helper::Trouble;

/// Addresses that the one allowed execveat(2) gives the kernel. Nobody can guess them, and they are gone with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExecKey {
    pub(super) path: u64,
    pub(super) arguments: u64,
    pub(super) environment: u64,
}

/// Installs the filter, for good. The process must have `no_new_privs`. `ports`: whether those of TCP are bounded, which
/// then nothing like TCP may go around.
pub(super) fn apply(denied: &BTreeSet<SyscallClass>, ports: bool, key: ExecKey) -> Result<(), Trouble> {
    if denied.is_empty() && !ports {
        return Ok(());
    }
    let failed = |error: &dyn std::error::Error| Trouble::plain(format!("seccomp filter: {error}"));
    if denied.contains(&SyscallClass::Namespace) {
        // Its flags are in memory, where no filter sees them. The C library takes clone(2) instead.
        let clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
        install(clone3, libc::ENOSYS).map_err(|error| failed(&error))?;
    }
    let rules = rules(denied, ports, key).map_err(|error| failed(&error))?;
    install(rules, libc::EPERM).map_err(|error| failed(&error))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn install(rules: Rules, errno: i32) -> Result<(), seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?;
    let mut program = other_abis();
    program.extend(BpfProgram::try_from(filter)?);
    seccompiler::apply_filter(&program)
}

/// On x86-64, the x32 ABI has numbers of its own for the same calls, and passes for the same architecture.
fn other_abis() -> BpfProgram {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const X32: u32 = 0x4000_0000;
    if !cfg!(target_arch = "x86_64") {
        return Vec::new();
    }
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: refuse },
    ]
}

fn rules(denied: &BTreeSet<SyscallClass>, ports: bool, key: ExecKey) -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    let mut sockets = Vec::new();
    if ports {
        sockets = like_tcp()?;
        // By which sockets are made as well.
        rules.insert(libc::SYS_io_uring_setup, vec![]);
        // Connects along with what it sends, where Landlock does not look.
        for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
            let fast_open = libc::MSG_FASTOPEN as u64;
            rules.insert(call, vec![all(&[(flags, Width::Dword, Is::MaskedEq(fast_open), fast_open)])?]);
        }
    }
    for class in denied {
        for call in whole(*class) {
            rules.insert(*call, vec![]);
        }
        match class {
            SyscallClass::Debug => {
                // 0 is who calls. Landlock has no say in these, and whoever is of the same user may make them.
                for call in [
                    libc::SYS_prlimit64,
                    libc::SYS_sched_setaffinity,
                    libc::SYS_sched_setattr,
                    libc::SYS_sched_setparam,
                    libc::SYS_sched_setscheduler,
                ] {
                    rules.insert(call, vec![all(&[(0, Width::Dword, Is::Ne, 0)])?]);
                }
                for (call, every_process_of_a_user) in
                    [(libc::SYS_setpriority, PRIO_USER), (libc::SYS_ioprio_set, IOPRIO_WHO_USER)]
                {
                    let others = all(&[(1, Width::Dword, Is::Ne, 0)])?;
                    rules.insert(call, vec![others, all(&[(0, Width::Dword, Is::Eq, every_process_of_a_user)])?]);
                }
            }
            SyscallClass::Namespace => {
                let flags = [
                    libc::CLONE_NEWUSER,
                    libc::CLONE_NEWNS,
                    libc::CLONE_NEWPID,
                    libc::CLONE_NEWNET,
                    libc::CLONE_NEWIPC,
                    libc::CLONE_NEWUTS,
                    libc::CLONE_NEWCGROUP,
                ];
                let has = |flag: i32| all(&[(0, Width::Qword, Is::MaskedEq(flag as u64), flag as u64)]);
                rules.insert(libc::SYS_clone, flags.into_iter().map(has).collect::<Result<_, _>>()?);
            }
            SyscallClass::RawSocket => {
                let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
                let other = families.map(|family| (0, Width::Dword, Is::Ne, family as u64));
                sockets.push(all(&other)?);
                for family in [libc::AF_INET, libc::AF_INET6] {
                    for kind in [libc::SOCK_RAW, SOCK_PACKET] {
                        sockets.push(all(&[
                            (0, Width::Dword, Is::Eq, family as u64),
                            (1, Width::Dword, Is::MaskedEq(SOCK_TYPE_MASK), kind as u64),
                        ])?);
                    }
                }
            }
            SyscallClass::Admin => {
                // 0 is the usual one, and all ones only asks.
                let odd = [0, 0xffff_ffff].map(|known| (0, Width::Dword, Is::Ne, known));
                rules.insert(libc::SYS_personality, vec![all(&odd)?]);
            }
            SyscallClass::Exec => {
                // Whatever differs from the one call that starts the plugin.
                let differs = |number, width, value| all(&[(number, width, Is::Ne, value)]);
                let one = vec![
                    differs(0, Width::Dword, u64::from(libc::AT_FDCWD as u32))?,
                    differs(1, Width::Qword, key.path)?,
                    differs(2, Width::Qword, key.arguments)?,
                    differs(3, Width::Qword, key.environment)?,
                    differs(4, Width::Dword, 0)?,
                ];
                rules.insert(libc::SYS_execveat, one);
            }
            _ => {}
        }
    }
    if !sockets.is_empty() {
        rules.insert(libc::SYS_socket, sockets);
    }
    Ok(rules)
}

/// Sockets that lead to where TCP does, and that Landlock does not take for TCP: multipath TCP, which falls back to it,
/// SMC, which does so too, SCTP and DCCP.
fn like_tcp() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let mut refused = vec![all(&[(0, Width::Dword, Is::Eq, AF_SMC)])?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = (0, Width::Dword, Is::Eq, family as u64);
        let kind = |kind: i32| (1, Width::Dword, Is::MaskedEq(SOCK_TYPE_MASK), kind as u64);
        let not = |protocol: i32| (2, Width::Dword, Is::Ne, protocol as u64);
        refused.push(all(&[family.clone(), kind(libc::SOCK_STREAM), not(0), not(libc::IPPROTO_TCP)])?);
        for other in [libc::SOCK_SEQPACKET, libc::SOCK_DCCP] {
            refused.push(all(&[family.clone(), kind(other)])?);
        }
    }
    Ok(refused)
}

const AF_SMC: u64 = 43;
/// Whose priority is set: that of all processes of a user.
const PRIO_USER: u64 = 2;
const IOPRIO_WHO_USER: u64 = 3;
/// Not in libc: newer (Linux 6.15). The number is the same on all machines.
const OPEN_TREE_ATTR: i64 = 467;
/// Not in libc: obsolete, but still there.
const SOCK_PACKET: i32 = 10;
/// Flags share the number.
const SOCK_TYPE_MASK: u64 = 0xf;

fn all(conditions: &[(u8, Width, Is, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = |(number, width, is, value): &(u8, Width, Is, u64)| {
        SeccompCondition::new(*number, width.clone(), is.clone(), *value)
    };
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

/// The calls of a class that are denied whatever their arguments are.
fn whole(class: SyscallClass) -> &'static [i64] {
    match class {
        SyscallClass::Debug => &[
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kcmp,
            libc::SYS_pidfd_getfd,
            libc::SYS_perf_event_open,
        ],
        SyscallClass::Mount => &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
            OPEN_TREE_ATTR,
        ],
        SyscallClass::Kernel => &[
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_bpf,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ],
        SyscallClass::Namespace => &[libc::SYS_unshare, libc::SYS_setns],
        // By which sockets are made as well.
        SyscallClass::RawSocket => &[libc::SYS_io_uring_setup],
        SyscallClass::Keyring => &[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl],
        SyscallClass::Clock => &[
            libc::SYS_clock_settime,
            libc::SYS_settimeofday,
            // Both also ask; nobody asks by them but programs that set.
            libc::SYS_adjtimex,
            libc::SYS_clock_adjtime,
        ],
        SyscallClass::Admin => &[
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
            libc::SYS_syslog,
            libc::SYS_vhangup,
            libc::SYS_fanotify_init,
            libc::SYS_open_by_handle_at,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_iopl,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_ioperm,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_modify_ldt,
        ],
        SyscallClass::Exec => &[libc::SYS_execve],
    }
}
