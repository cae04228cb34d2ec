//! Programs and files, where the kernel has BPF LSM: no `execve`, no change of files, and what no agent is ever let do.
//!
//! Three groups, which load one by one: `exec` and `write` are held by bits of the agent's row; the guard is a second lock on what its
//! sandbox refuses anyway (other agents' memory, `bpf`), and on the ways around a revocation. The hooks see every task of
//! the host, so one of a cgroup that is in no directory passes. Refused calls return `EPERM`. What is open for writing stays so.

use crate::agent::{agent_level, current_slot, slot_of};
use crate::control::{Actor, Refusal, is_revoked, policy, refuse};
use crate::sched::{
    OFFSET_CGROUP_ANCESTORS, OFFSET_CGROUP_KN, OFFSET_CGROUP_LEVEL, OFFSET_KERNFS_NODE_ID,
    constant, field, slot_of_task,
};
use agentd_ebpf_common::{op, revoked};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

const PASSED: i32 = 0;
const EPERM: i32 = 1;

const FMODE_WRITE: u32 = 2;
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;

/// Declares what the loader looks up in the kernel's own type information: bytes from the beginning of a structure to a field.
macro_rules! offsets {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        static $name: u32 = 0;
    )* };
}

offsets!(
    OFFSET_BPRM_FILE,
    OFFSET_FILE_INODE,
    OFFSET_FILE_MODE,
    OFFSET_INODE_MODE,
    OFFSET_INODE_INO,
    OFFSET_INODE_SB,
    OFFSET_SB_DEV,
    OFFSET_SOCK_CGROUP
);

/// Refuses the current task's call if its agent has lost `bit`.
#[inline(always)]
fn judge(bit: u32, op: u32, detail: impl FnOnce() -> [u64; 3]) -> i32 {
    let slot = current_slot();
    if slot == 0 {
        return PASSED;
    }
    let Some(policy) = policy(slot) else {
        return PASSED;
    };
    if !is_revoked(policy, bit) {
        return PASSED;
    }
    let refusal = Refusal {
        op,
        because: bit,
        detail: detail(),
    };
    refuse(slot, Actor::Current, refusal);
    -EPERM
}

/// Refuses the current task's call.
#[inline(always)]
fn never(slot: u32, op: u32) -> i32 {
    let refusal = Refusal {
        op,
        because: 0,
        detail: [0; 3],
    };
    refuse(slot, Actor::Current, refusal);
    -EPERM
}

/// Device and inode of an open file, as `stat(2)` has them.
///
/// # Safety
/// `file` is a `struct file` that the kernel gave to this program.
#[inline(always)]
unsafe fn named(file: *const u8, flags: u64) -> [u64; 3] {
    // SAFETY: as the types of the fields say, from file to inode to super block; the verifier holds us to that.
    unsafe {
        let inode: *const u8 = field(file, constant(&OFFSET_FILE_INODE));
        let block: *const u8 = field(inode, constant(&OFFSET_INODE_SB));
        let number: u64 = field(inode, constant(&OFFSET_INODE_INO));
        let device: u32 = field(block, constant(&OFFSET_SB_DEV));
        let (major, minor) = (device >> 20, device & 0xf_ffff);
        let encoded = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        [u64::from(encoded), number, flags]
    }
}

#[lsm(hook = "bprm_check_security")]
pub fn bprm_check_security(context: LsmContext) -> i32 {
    let bprm: *const u8 = context.arg(0);
    // SAFETY: the hook's argument is a `struct linux_binprm`, whose file is open.
    judge(revoked::EXEC, op::EXEC, || unsafe {
        named(field(bprm, constant(&OFFSET_BPRM_FILE)), 0)
    })
}

#[lsm(hook = "file_open")]
pub fn file_open(context: LsmContext) -> i32 {
    let file: *const u8 = context.arg(0);
    // SAFETY: the hook's argument is a `struct file`.
    let (mode, kind) = unsafe {
        let inode: *const u8 = field(file, constant(&OFFSET_FILE_INODE));
        (
            field::<u32>(file, constant(&OFFSET_FILE_MODE)),
            field::<u16>(inode, constant(&OFFSET_INODE_MODE)) & S_IFMT,
        )
    };
    // Terminals, pipes and devices are no files that anybody keeps.
    if mode & FMODE_WRITE == 0 || kind != S_IFREG {
        return PASSED;
    }
    // SAFETY: as above.
    judge(revoked::WRITE, op::OPEN, || unsafe {
        named(file, u64::from(mode))
    })
}

/// Hooks that change a directory or what a name stands for.
macro_rules! changes {
    ($($hook:ident = $name:literal),* $(,)?) => { $(
        #[lsm(hook = $name)]
        pub fn $hook(_context: LsmContext) -> i32 {
            judge(revoked::WRITE, op::CHANGE, || [0; 3])
        }
    )* };
}

changes!(
    inode_create = "inode_create",
    inode_mkdir = "inode_mkdir",
    inode_mknod = "inode_mknod",
    inode_link = "inode_link",
    inode_symlink = "inode_symlink",
    inode_unlink = "inode_unlink",
    inode_rmdir = "inode_rmdir",
    inode_rename = "inode_rename",
    inode_setattr = "inode_setattr",
    inode_setxattr = "inode_setxattr",
    inode_removexattr = "inode_removexattr",
);

#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(context: LsmContext) -> i32 {
    let slot = current_slot();
    if slot == 0 {
        return PASSED;
    }
    let target: *const u8 = context.arg(0);
    if slot_of_task(target) != slot {
        return never(slot, op::PTRACE);
    }
    // A program can be put into another process as well as started.
    judge(revoked::EXEC, op::PTRACE, || [0; 3])
}

#[lsm(hook = "userns_create")]
pub fn userns_create(_context: LsmContext) -> i32 {
    judge(revoked::EXEC, op::USERNS, || [0; 3])
}

#[lsm(hook = "bpf")]
pub fn bpf(_context: LsmContext) -> i32 {
    match current_slot() {
        0 => PASSED,
        slot => never(slot, op::BPF),
    }
}

/// Without the network an agent reaches Unix sockets of its own sandbox, where the bus is, and nobody's on the host.
#[lsm(hook = "unix_stream_connect")]
pub fn unix_stream_connect(context: LsmContext) -> i32 {
    let slot = current_slot();
    if slot == 0 {
        return PASSED;
    }
    let listener: *const u8 = context.arg(1);
    // SAFETY: the hook's second argument is a `struct sock`.
    if unsafe { slot_of_sock(listener) } == slot {
        return PASSED;
    }
    judge(revoked::NET, op::UNIX_CONNECT, || [0; 3])
}

/// The slot of the agent that made a socket; 0 if none did.
///
/// # Safety
/// `sock` is a `struct sock` that the kernel gave to this program.
#[inline(always)]
unsafe fn slot_of_sock(sock: *const u8) -> u32 {
    // SAFETY: each read is a copy that the kernel checks, from sock to cgroup to its ancestor to its node.
    let id = unsafe {
        let level = agent_level() as u32;
        let read = |base: *const u8, offset: u32| {
            bpf_probe_read_kernel(base.add(offset as usize).cast::<*const u8>()).ok()
        };
        let ancestor = || {
            let cgroup = read(sock, constant(&OFFSET_SOCK_CGROUP))?;
            let depth = cgroup.add(constant(&OFFSET_CGROUP_LEVEL) as usize);
            if bpf_probe_read_kernel(depth.cast::<u32>()).ok()? < level {
                return None;
            }
            let own = read(cgroup, constant(&OFFSET_CGROUP_ANCESTORS) + 8 * level)?;
            let node = read(own, constant(&OFFSET_CGROUP_KN))?;
            let id = node.add(constant(&OFFSET_KERNFS_NODE_ID) as usize);
            bpf_probe_read_kernel(id.cast::<u64>()).ok()
        };
        ancestor().unwrap_or(0)
    };
    slot_of(id)
}
