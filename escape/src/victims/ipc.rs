//! Memory, queues, semaphores and a key of the host, each with the secret in it.
//!
//! Everything is the caller's and open to it, so that only the sandbox stands before it. Removed on drop.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;

use super::{Raise, RaiseError, give};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

/// Messages in each queue: one for each case that could take one.
const MESSAGES: usize = 8;
const KEYCTL_SETPERM: i32 = 5;
const KEYCTL_INVALIDATE: i32 = 21;
const KEY_SPEC_USER_KEYRING: i32 = -4;
const ALL_PERMISSIONS: i32 = 0x3f3f_3f3f;

#[derive(Debug)]
pub struct Ipc {
    shm: i32,
    sem: i32,
    msg: i32,
    shm_path: std::path::PathBuf,
    mq: Option<CString>,
    key: i32,
}

impl Ipc {
    pub fn raise(
        uid: u32,
        mark: &str,
        secret: &str,
        scene: &mut Scene,
    ) -> Result<Self, RaiseError> {
        let number = super::random(3).raise("a key")?;
        let key = i32::from_str_radix(&number, 16).unwrap_or(1) | 0x5a00_0000;
        let create = libc::IPC_CREAT | libc::IPC_EXCL | 0o666;
        let id = |value: usize| i32::try_from(value).unwrap_or(-1);
        let shm = id(call!(libc::SYS_shmget, key, 4096_usize, create).raise("shared memory")?);
        write_segment(shm, secret).raise("the segment")?;
        let sem = id(call!(libc::SYS_semget, key, 1, create).raise("a semaphore")?);
        let msg = id(call!(libc::SYS_msgget, key, create).raise("a message queue")?);
        for _ in 0..MESSAGES {
            let mut message = Vec::from(1_i64.to_ne_bytes());
            message.extend_from_slice(secret.as_bytes());
            call!(libc::SYS_msgsnd, msg, message.as_mut_ptr(), secret.len(), 0)
                .raise("a message")?;
        }
        (scene.shm_key, scene.sem_key, scene.msg_key) = (key, key, key);
        (scene.shm_id, scene.sem_id, scene.msg_id) = (shm, sem, msg);

        scene.shm_name = mark.to_owned();
        let shm_path = std::path::Path::new("/dev/shm").join(mark);
        std::fs::write(&shm_path, secret).raise(shm_path.display().to_string())?;
        let open = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(&shm_path, open).raise(shm_path.display().to_string())?;
        give(&shm_path, uid).raise(shm_path.display().to_string())?;

        scene.mq_name = mark.to_owned();
        let mq = c(mark);
        let mq = raise_queue(&mq, secret).is_ok().then_some(mq);

        let fifo = c(&scene.fifo);
        call!(
            libc::SYS_mknodat,
            libc::AT_FDCWD,
            fifo.as_c_str(),
            libc::S_IFIFO | 0o666,
            0
        )
        .raise("a fifo")?;
        give(&scene.fifo, uid).raise("a fifo")?;

        scene.key_name = mark.to_owned();
        scene.key_id = raise_key(uid, mark, secret).unwrap_or(0);
        Ok(Self {
            shm,
            sem,
            msg,
            shm_path,
            mq,
            key: scene.key_id,
        })
    }
}

fn write_segment(id: i32, secret: &str) -> Result<(), Refused> {
    let at = call!(libc::SYS_shmat, id, 0, 0)?;
    // SAFETY: the segment was just attached there with 4096 bytes, and the secret is shorter.
    unsafe {
        std::ptr::copy_nonoverlapping(
            secret.as_ptr(),
            std::ptr::with_exposed_provenance_mut(at),
            secret.len(),
        );
    }
    call!(libc::SYS_shmdt, at).map(drop)
}

fn raise_queue(name: &CString, secret: &str) -> Result<(), Refused> {
    // SAFETY: changes this process's mask only: others are to open the queue.
    let mask = unsafe { libc::umask(0) };
    let flags = libc::O_CREAT | libc::O_RDWR;
    let opened = call!(libc::SYS_mq_open, name.as_c_str(), flags, 0o666, 0);
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    let queue = opened?;
    let sent = (0..MESSAGES).try_for_each(|_| {
        call!(
            libc::SYS_mq_timedsend,
            queue,
            secret.as_ptr(),
            secret.len(),
            0,
            0
        )
        .map(drop)
    });
    call!(libc::SYS_close, queue)?;
    sent
}

/// A key in the caller's user keyring. Another thread takes on the caller's uid for it: keyrings go by uid.
fn raise_key(uid: u32, name: &str, secret: &str) -> Option<i32> {
    let (name, secret) = (c(name), secret.to_owned());
    let add = move || -> Result<usize, Refused> {
        call!(libc::SYS_setresuid, uid, uid, uid)?;
        let key = call!(
            libc::SYS_add_key,
            c"user",
            name.as_c_str(),
            secret.as_ptr(),
            secret.len(),
            KEY_SPEC_USER_KEYRING
        )?;
        call!(libc::SYS_keyctl, KEYCTL_SETPERM, key, ALL_PERMISSIONS)?;
        Ok(key)
    };
    let key = std::thread::spawn(add).join().ok()?.ok()?;
    i32::try_from(key).ok()
}

impl Drop for Ipc {
    fn drop(&mut self) {
        let mut kept = Vec::new();
        let mut remove = |what: &str, done: Result<usize, Refused>| {
            if let Err(refused) = done {
                kept.push(format!("{what}: {refused}"));
            }
        };
        remove("shm", call!(libc::SYS_shmctl, self.shm, libc::IPC_RMID, 0));
        remove(
            "sem",
            call!(libc::SYS_semctl, self.sem, 0, libc::IPC_RMID, 0),
        );
        remove("msg", call!(libc::SYS_msgctl, self.msg, libc::IPC_RMID, 0));
        if let Some(name) = &self.mq {
            remove("mq", call!(libc::SYS_mq_unlink, name.as_c_str()));
        }
        if self.key != 0 {
            remove("key", call!(libc::SYS_keyctl, KEYCTL_INVALIDATE, self.key));
        }
        if let Err(error) = std::fs::remove_file(&self.shm_path) {
            kept.push(format!("{}: {error}", self.shm_path.display()));
        }
        if !kept.is_empty() {
            eprintln!("agentd-escape: not removed: {}", kept.join(", "));
        }
    }
}
