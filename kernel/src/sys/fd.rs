//! File descriptors without `std`: owned, and borrowed for a call.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;

use super::{call::call, nr};

/// An open file descriptor; closed when dropped.
#[derive(Debug)]
pub struct Fd(i32);

/// A descriptor that someone else keeps open.
#[derive(Debug, Clone, Copy)]
pub struct FdRef<'a>(i32, PhantomData<&'a Fd>);

impl Fd {
    /// Takes a descriptor over.
    ///
    /// # Safety
    /// `raw` is open, and nothing else closes it.
    pub unsafe fn from_raw(raw: i32) -> Fd {
        Fd(raw)
    }

    /// A freshly returned descriptor. Only for results of calls that return one.
    pub(super) fn returned(raw: usize) -> Fd {
        Fd(raw as i32)
    }

    /// For a call.
    pub fn borrow(&self) -> FdRef<'_> {
        FdRef(self.0, PhantomData)
    }

    /// Its number, which it is up to the caller to keep open or close.
    pub fn into_raw(self) -> i32 {
        ManuallyDrop::new(self).0
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: this value owned the descriptor, so nobody else uses the number. Linux frees it even when close reports
        // an error, and the errors are about data that these descriptors do not carry.
        unsafe { call(nr::CLOSE, [self.0 as usize]) }.unwrap_or(0);
    }
}

impl FdRef<'static> {
    /// The working directory, where a directory descriptor is asked for.
    pub const CWD: FdRef<'static> = FdRef(-100, PhantomData);

    /// A descriptor that stays open as long as the process.
    ///
    /// # Safety
    /// `raw` is open and is never closed.
    pub const unsafe fn always_open(raw: i32) -> FdRef<'static> {
        FdRef(raw, PhantomData)
    }
}

impl FdRef<'_> {
    /// Its number.
    pub const fn raw(self) -> i32 {
        self.0
    }

    pub(super) const fn arg(self) -> usize {
        self.0 as usize
    }
}
