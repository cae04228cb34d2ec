//! The direct path: a frame that an agent sends on its direct connection lands in the receive queue of the peer that it names.
//!
//! Four programs, in the order in which they run. [`route_connect4`] marks a socket that connects to agentd's port with the slot of the
//! task that connects: a task is known here, and not later. [`route_established`] puts the marked socket into the sockhash once
//! the connection stands, so nobody has to call `bpf(2)`. [`route_verdict`] runs on each `sendmsg` of a socket in that
//! sockhash, and redirects the whole frame: to the peer, or back to its sender with the reason. It never lets one pass to agentd.
//! [`route_received`] runs when any socket of the host has received, and counts what those in the sockhash took: that is their credit.

use crate::agent::{MMAPABLE, add, current_slot};
use agentd_ebpf_common::route::{
    ANSWERS, CONTENT_MAX, Flow, Grant, HEAD_LEN, Head, MAGIC, PORT, SLOTS, Traffic, refused, slot_of,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_INGRESS, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    sk_action::{SK_DROP, SK_PASS},
    sk_msg_md,
};
use aya_ebpf::btf_maps::{Array, SkStorage, SockHash};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_msg_pull_data, bpf_msg_redirect_hash, bpf_sk_storage_delete,
    bpf_sk_storage_get, bpf_sock_hash_update,
};
use aya_ebpf::macros::{btf_map, btf_tracepoint, cgroup_sock_addr, sk_msg, sock_ops};
use aya_ebpf::programs::{BtfTracePointContext, SkMsgContext, SockAddrContext, SockOpsContext};
use core::ffi::c_void;
use core::ptr::{null_mut, read_volatile, write_volatile};

/// Rights. Written by the broker.
#[btf_map]
pub static ROUTE_GRANTS: Array<Grant, SLOTS, MMAPABLE> = Array::new();
/// What waits for each. Written here.
#[btf_map]
pub static ROUTE_FLOWS: Array<Flow, SLOTS, MMAPABLE> = Array::new();
/// Figures. Written here.
#[btf_map]
pub static ROUTE_TRAFFIC: Array<Traffic, SLOTS, MMAPABLE> = Array::new();
/// One direct connection of each slot.
#[btf_map]
pub static ROUTE_SOCKETS: SockHash<u32, SLOTS> = SockHash::new();
/// Whose direct connection a socket is.
#[btf_map]
pub static ROUTE_OWNERS: SkStorage<u32> = SkStorage::new();

/// `127.0.0.1` in network byte order.
const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
const TCP: u32 = 6;

/// The slot that `socket` is marked with, or null.
///
/// # Safety
/// `socket` is the socket of a program's context, and not null.
#[inline(always)]
unsafe fn owner(socket: *mut c_void, create: *mut u32, flags: u32) -> *mut u32 {
    // SAFETY: the map is of this kind; the verifier checks the socket; `create` is null or points at a word on the stack.
    unsafe {
        bpf_sk_storage_get(
            (&raw const ROUTE_OWNERS).cast_mut().cast(),
            socket,
            create.cast(),
            u64::from(flags),
        )
    }
    .cast()
}

/// Marks sockets that connect to the direct port, and takes the mark from those that then connect elsewhere. Refuses nobody.
#[cgroup_sock_addr(connect4)]
pub fn route_connect4(context: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs; the verifier checks each field.
    unsafe {
        let address = &*context.sock_addr;
        let socket = address.__bindgen_anon_1.sk;
        if socket.is_null() || address.protocol != TCP {
            return 1;
        }
        if address.user_ip4 != LOOPBACK || address.user_port != u32::from(PORT.to_be()) {
            bpf_sk_storage_delete((&raw const ROUTE_OWNERS).cast_mut().cast(), socket.cast());
            return 1;
        }
        let mut slot = current_slot();
        if slot == 0 || slot >= SLOTS as u32 {
            return 1;
        }
        let mark = owner(socket.cast(), &raw mut slot, BPF_SK_STORAGE_GET_F_CREATE);
        if !mark.is_null() {
            write_volatile(mark, slot);
        }
    }
    1
}

/// Puts a marked socket into the sockhash. An agent's first connection counts: a second finds the place taken, and carries nothing.
#[sock_ops]
pub fn route_established(context: SockOpsContext) -> u32 {
    // SAFETY: the context is valid while the program runs; the verifier checks each field.
    unsafe {
        if context.op() != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
            return 1;
        }
        let socket = (*context.ops).__bindgen_anon_2.sk;
        if socket.is_null() || context.remote_ip4() != LOOPBACK {
            return 1;
        }
        let mark = owner(socket.cast(), null_mut(), 0);
        if mark.is_null() {
            return 1;
        }
        let mut slot = read_volatile(mark);
        let Some(flow) = ROUTE_FLOWS.get_ptr_mut(slot) else {
            return 1;
        };
        let added = bpf_sock_hash_update(
            context.ops,
            (&raw const ROUTE_SOCKETS).cast_mut().cast(),
            (&raw mut slot).cast(),
            u64::from(BPF_NOEXIST),
        );
        if added == 0 {
            // What was queued to the last connection went with it.
            let queued = read_volatile(&raw const (*flow).queued);
            write_volatile(&raw mut (*flow).taken, queued);
            if let Some(traffic) = ROUTE_TRAFFIC.get_ptr_mut(slot) {
                write_volatile(
                    &raw mut (*traffic).cookie,
                    bpf_get_socket_cookie(context.as_ptr()),
                );
            }
        }
    }
    1
}

#[inline(always)]
fn refuse(traffic: *mut Traffic, why: usize) -> u32 {
    // SAFETY: a row of the map, aligned; every writer adds atomically. `why` is one of the constants.
    unsafe { add((&raw mut (*traffic).refused).cast::<u64>().add(why), 1) };
    SK_DROP
}

#[sk_msg]
pub fn route_verdict(context: SkMsgContext) -> u32 {
    // SAFETY: the context is valid while the program runs, rows are in maps and aligned; the verifier checks each access.
    unsafe {
        let message = context.msg;
        let socket = (*message).__bindgen_anon_3.sk;
        if socket.is_null() {
            return SK_DROP;
        }
        let mark = owner(socket.cast(), null_mut(), 0);
        if mark.is_null() {
            return SK_DROP;
        }
        let slot = read_volatile(mark);
        let Some(traffic) = ROUTE_TRAFFIC.get_ptr_mut(slot) else {
            return SK_DROP;
        };
        if context.data() + HEAD_LEN > context.data_end()
            && bpf_msg_pull_data(message, 0, HEAD_LEN as u32, 0) != 0
        {
            return refuse(traffic, refused::SHAPE);
        }
        if context.data() + HEAD_LEN > context.data_end() {
            return refuse(traffic, refused::SHAPE);
        }
        let head = context.data() as *const Head;
        let len = (*head).len;
        let whole = len + HEAD_LEN as u32;
        if (*head).magic != MAGIC || len > CONTENT_MAX || context.size() != whole {
            return refuse(traffic, refused::SHAPE);
        }
        let to = (*head).to;
        let Some(grant) = ROUTE_GRANTS.get(slot) else {
            return SK_DROP;
        };
        let address = read_volatile(&raw const grant.address);
        if address == 0 || (*head).from != address {
            return refuse(traffic, refused::SOURCE);
        }

        let size = u64::from(whole);
        let peer = slot_of(to);
        let Some(theirs) = ROUTE_GRANTS.get(peer) else {
            return SK_DROP;
        };
        let right = if (*head).kind & ANSWERS == 0 {
            may_send(grant, peer)
        } else {
            may_send(theirs, slot)
        };
        let may = right && read_volatile(&raw const theirs.address) == to;
        let done = if may {
            put(message, peer, read_volatile(&raw const theirs.credit), size)
        } else {
            Err(refused::RIGHT)
        };
        let Err(why) = done else {
            add(&raw mut (*traffic).sent, 1);
            add(&raw mut (*traffic).sent_bytes, u64::from(len));
            if let Some(theirs) = ROUTE_TRAFFIC.get_ptr_mut(peer) {
                add(&raw mut (*theirs).received, 1);
                add(&raw mut (*theirs).received_bytes, u64::from(len));
            }
            return SK_PASS;
        };
        refuse(traffic, why);
        // Back to its sender, with the reason on it: after one SK_DROP the kernel refuses all that a socket sends.
        if context.data() + HEAD_LEN > context.data_end() {
            return SK_DROP;
        }
        (*(context.data() as *mut Head)).status = why as u32 + 1;
        match put(message, slot, read_volatile(&raw const grant.credit), size) {
            Ok(()) => SK_PASS,
            Err(_) => SK_DROP,
        }
    }
}

/// Whether whoever has this row may send to `slot`.
#[inline(always)]
fn may_send(grant: &Grant, slot: u32) -> bool {
    let word = (slot >> 6) as usize & (SLOTS / 64 - 1);
    // SAFETY: a word of the row, by the mask; the broker stores whole words.
    let allowed = unsafe { read_volatile((&raw const grant.to).cast::<u64>().add(word)) };
    allowed & (1 << (slot & 63)) != 0
}

/// Redirects a message of `size` bytes into the queue of `slot`, within its credit; the reason if that can't be.
///
/// # Safety
/// `message` is that of the program's context.
#[inline(always)]
unsafe fn put(message: *mut sk_msg_md, slot: u32, credit: u32, size: u64) -> Result<(), usize> {
    let Some(flow) = ROUTE_FLOWS.get_ptr_mut(slot) else {
        return Err(refused::ABSENT);
    };
    let mut key = slot;
    // SAFETY: a row of the map, aligned, to which every writer adds atomically; the message is the context's.
    unsafe {
        add(&raw mut (*flow).queued, size);
        let waiting = read_volatile(&raw const (*flow).queued)
            .wrapping_sub(read_volatile(&raw const (*flow).taken));
        // Signed: while another processor takes back what it added in vain, more may have been taken than was queued.
        let why = if waiting as i64 > i64::from(credit) {
            refused::CREDIT
        } else {
            let verdict = bpf_msg_redirect_hash(
                message,
                (&raw const ROUTE_SOCKETS).cast_mut().cast(),
                (&raw mut key).cast(),
                u64::from(BPF_F_INGRESS),
            );
            if verdict == i64::from(SK_PASS) {
                return Ok(());
            }
            refused::ABSENT
        };
        add(&raw mut (*flow).queued, 0u64.wrapping_sub(size));
        Err(why)
    }
}

/// `sock_recv_length(sk, ret, flags)`: what a receiver took gives room for as much.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn route_received(context: BtfTracePointContext) -> i32 {
    const MSG_PEEK: i32 = 2;
    // SAFETY: the arguments of this tracepoint, in its order and of its types; the socket is alive while it is received from.
    unsafe {
        let socket: *mut c_void = context.arg(0);
        let (received, flags): (i32, i32) = (context.arg(1), context.arg(2));
        if socket.is_null() || received <= 0 || flags & MSG_PEEK != 0 {
            return 0;
        }
        let mark = owner(socket, null_mut(), 0);
        if mark.is_null() {
            return 0;
        }
        let Some(flow) = ROUTE_FLOWS.get_ptr_mut(read_volatile(mark)) else {
            return 0;
        };
        // Bytes that didn't come by this path would give room for what hasn't been taken.
        let waiting = read_volatile(&raw const (*flow).queued)
            .wrapping_sub(read_volatile(&raw const (*flow).taken)) as i64;
        if i64::from(received) <= waiting {
            add(&raw mut (*flow).taken, received as u64);
        }
    }
    0
}
