//! Which kinds of eBPF programs this caller can load: one smallest program of each kind that agentd
//! has, verified and freed.
//!
//! Nothing is attached, so nobody on the host notices. What is loaded is not all of agentd's: a
//! kernel that takes these may refuse one of the real ones, which the broker's log and a running
//! daemon's `agentctl doctor` then say with the verifier's words.

use super::calls::from;
use super::child::check;
use super::facilities::own;
use super::{Feature, ProbeState, Roots};
use crate::btf::KernelTypes;
use crate::lsm;
use rustix::io::Errno;

const CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET4_CONNECT: u32 = 10;
const TRACING: u32 = 26;
const TRACE_RAW_TP: u32 = 23;
const LSM: u32 = 29;
const LSM_MAC: u32 = 27;

/// The hook by which `execve` is revoked.
const LSM_HOOK: &str = "bpf_lsm_bprm_check_security";
const ANOTHER_KERNEL: &str =
    "a kernel that makes trampolines for BPF (CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y)";
const SWITCH: &str = "sched_switch";
/// Linux 6.3.
const RECEIVED: &str = "sock_recv_length";

/// (feature, state, what would help if that is not the usual)
pub(super) fn probe(roots: &Roots) -> Vec<(Feature, ProbeState, Option<String>)> {
    // One that says yes.
    let connect = load(CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT, 0, 1);
    let connect = with_rights(connect, "loading a BPF program");
    if let ProbeState::Denied { .. } = connect {
        // Who may not load this may load none.
        let all = [
            Feature::Bpf,
            Feature::BpfLsm,
            Feature::BpfTracing,
            Feature::BpfReceipts,
        ];
        return all.map(|feature| (feature, connect.clone(), None)).to_vec();
    }
    let types = KernelTypes::read(&roots.sys.join("kernel/btf/vmlinux"));
    let number = |find: &dyn Fn(&KernelTypes) -> Option<u32>, what: &str| match &types {
        Ok(types) => find(types).ok_or_else(|| format!("this kernel has no {what}")),
        Err(error) => Err(error.to_string()),
    };
    let loads = |number: Result<u32, String>, kind, attach_type, call: &str| match number {
        Err(why) => ProbeState::Unsupported { why },
        Ok(to) => with_rights(load(kind, attach_type, to, 0), call),
    };
    let tracepoint = |name: &'static str| {
        let number = number(
            &|types| types.tracepoint(name),
            &format!("tracepoint {name}"),
        );
        let call = format!("loading a BPF program for the tracepoint {name}");
        loads(number, TRACING, TRACE_RAW_TP, &call)
    };
    let hook = lsm::check_bpf(roots)
        .and_then(|()| number(&|types| types.function(LSM_HOOK), "hook of BPF LSM"));
    // The hooks are called; what is refused then is the program itself.
    let other_kernel = hook.is_ok().then(|| ANOTHER_KERNEL.to_owned());
    vec![
        (Feature::Bpf, connect, None),
        (
            Feature::BpfLsm,
            loads(hook, LSM, LSM_MAC, "loading a BPF LSM program"),
            other_kernel,
        ),
        (Feature::BpfTracing, tracepoint(SWITCH), None),
        (Feature::BpfReceipts, tracepoint(RECEIVED), None),
    ]
}

fn with_rights(result: Result<(), Errno>, call: &str) -> ProbeState {
    match from(result, call) {
        // Root is refused too where a kernel makes no trampolines.
        ProbeState::Denied { why, .. } if rustix::process::geteuid().is_root() => {
            ProbeState::Unsupported { why }
        }
        ProbeState::Denied { why, .. } => ProbeState::Denied {
            capability: "CAP_BPF".into(),
            why,
        },
        state => state,
    }
}

/// Loads `r0 = answer; exit` for the place of the kernel that has the number `attach_to`.
fn load(kind: u32, attach_type: u32, attach_to: u32, answer: u32) -> Result<(), Errno> {
    const PROG_LOAD: libc::c_long = 5;
    let program: [u64; 2] = [u64::from(answer) << 32 | 0xb7, 0x95];
    let licence = c"GPL";
    // The part of union bpf_attr that a load uses, up to attach_btf_id.
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        program: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach_type: u32,
        program_btf: u32,
        function_info_size: u32,
        function_info: u64,
        function_info_count: u32,
        line_info_size: u32,
        line_info: u64,
        line_info_count: u32,
        attach_btf_id: u32,
    }
    const _: () = assert!(size_of::<Load>() == 112);
    let load = Load {
        kind,
        instructions: 2,
        program: program.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"agentd_probe\0\0\0\0",
        ifindex: 0,
        attach_type,
        program_btf: 0,
        function_info_size: 0,
        function_info: 0,
        function_info_count: 0,
        line_info_size: 0,
        line_info: 0,
        line_info_count: 0,
        attach_btf_id: attach_to,
    };
    // SAFETY: the attributes, the program and the licence live through the call, and the size is passed. The program is
    // loaded, attached to nothing, and freed with its descriptor.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>())
    })?;
    drop(own(fd));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_kernels_types_nothing_is_loaded_and_the_reason_is_told() {
        let empty = tempfile::tempdir().expect("a temporary folder");
        let roots = Roots {
            sys: empty.path().into(),
            ..Roots::default()
        };
        for (feature, state, _) in probe(&roots) {
            match (feature, state) {
                (_, ProbeState::Denied { .. }) | (Feature::Bpf | Feature::BpfLsm, _) => {}
                (feature, state) => {
                    let why = match &state {
                        ProbeState::Unsupported { why } => why,
                        state => panic!("{feature:?}: {state:?}"),
                    };
                    assert!(why.contains("btf/vmlinux"), "{why}");
                }
            }
        }
    }
}
