//! SQLite through its own C interface: write-ahead log, `synchronous=FULL`, one prepared INSERT, a transaction a batch.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr;

use anyhow::{Result, bail};
use libsqlite3_sys as ffi;

use crate::{BATCH, Contender, MESSAGE, noise, rate};

struct Sqlite {
    db: *mut ffi::sqlite3,
    insert: *mut ffi::sqlite3_stmt,
    message: Vec<u8>,
}

pub fn start(directory: &Path) -> Result<Box<dyn Contender>> {
    let path = directory.join("peer.db");
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut db = ptr::null_mut();
    // SAFETY: `path` is a C string that outlives the call, and `db` is where the handle goes.
    let opened = unsafe { ffi::sqlite3_open(path.as_ptr(), &raw mut db) };
    if opened != ffi::SQLITE_OK {
        bail!("sqlite3_open: {opened}");
    }
    let mut sqlite = Sqlite {
        db,
        insert: ptr::null_mut(),
        message: noise(3, MESSAGE),
    };
    for sql in [
        c"PRAGMA journal_mode = WAL",
        c"PRAGMA synchronous = FULL",
        c"CREATE TABLE messages (id INTEGER PRIMARY KEY, payload BLOB NOT NULL)",
    ] {
        sqlite.run(sql)?;
    }
    let sql = c"INSERT INTO messages (payload) VALUES (?1)";
    // SAFETY: an open handle, a C string of which all is to be read, and where the statement goes.
    let prepared = unsafe {
        ffi::sqlite3_prepare_v2(
            sqlite.db,
            sql.as_ptr(),
            -1,
            &raw mut sqlite.insert,
            ptr::null_mut(),
        )
    };
    sqlite.good("prepare", prepared, ffi::SQLITE_OK)?;
    Ok(Box::new(sqlite))
}

impl Sqlite {
    fn good(&self, what: &str, code: i32, wanted: i32) -> Result<()> {
        if code != wanted {
            bail!("SQLite: {what}: {code}");
        }
        Ok(())
    }

    fn run(&self, sql: &CStr) -> Result<()> {
        // SAFETY: an open handle and a C string; no callback, no place for a message.
        let code = unsafe {
            ffi::sqlite3_exec(
                self.db,
                sql.as_ptr(),
                None,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        self.good(&sql.to_string_lossy(), code, ffi::SQLITE_OK)
    }

    fn insert(&self) -> Result<()> {
        let len = i32::try_from(self.message.len())?;
        // SAFETY: a statement of this open handle; the message lives and stays as it is until the step is done, which is what
        // SQLITE_STATIC asks for.
        let code = unsafe {
            ffi::sqlite3_bind_blob(
                self.insert,
                1,
                self.message.as_ptr().cast(),
                len,
                ffi::SQLITE_STATIC(),
            );
            let code = ffi::sqlite3_step(self.insert);
            ffi::sqlite3_reset(self.insert);
            code
        };
        self.good("INSERT", code, ffi::SQLITE_DONE)
    }
}

impl Contender for Sqlite {
    fn enqueue(&mut self, batches: usize) -> Result<f64> {
        rate(batches * BATCH, || {
            for _ in 0..batches {
                self.run(c"BEGIN IMMEDIATE")?;
                for _ in 0..BATCH {
                    self.insert()?;
                }
                self.run(c"COMMIT")?;
            }
            Ok(())
        })
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        // SAFETY: both were made by SQLite, belong to this value alone, and are not used afterwards; null is allowed.
        unsafe {
            ffi::sqlite3_finalize(self.insert);
            ffi::sqlite3_close(self.db);
        }
    }
}
