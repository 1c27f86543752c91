//! Packed weights in memory that they need not own.
//!
//! A matrix reads its weights from bytes that somebody keeps alive: a buffer of its own ([`AlignedBytes`]), or a file
//! that is mapped once and shared by all processes that run the model. Both look alike to the kernels.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of packed weights: a cache line, and the widest vector.
pub const ALIGN: usize = 64;

/// Who keeps bytes alive.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Types of which every bit pattern is a value.
///
/// # Safety
/// No padding, no niche, no pointer.
#[expect(unsafe_code, reason = "reading mapped bytes as blocks of weights relies on it")]
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

#[expect(unsafe_code, reason = "states a property of the type")]
// SAFETY: an integer.
unsafe impl Plain for u16 {}
#[expect(unsafe_code, reason = "states a property of the type")]
// SAFETY: a float; every bit pattern is one.
unsafe impl Plain for f32 {}
#[expect(unsafe_code, reason = "states a property of the type")]
// SAFETY: an array has no padding between its elements.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// A read-only slice of `T` inside bytes that an [`Owner`] keeps.
pub(crate) struct Storage<T> {
    data: NonNull<T>,
    len: usize,
    /// Not read again: `data` points into what it returned once, which nobody may change or move while this is alive.
    owner: Owner,
    slice: PhantomData<T>,
}

impl<T: Plain> Storage<T> {
    /// The `T`s in bytes `start..start + n_bytes` of `owner`; `None` if they are not all there, are no whole number of
    /// `T`s or not aligned for them.
    #[expect(unsafe_code, reason = "reads bytes as blocks")]
    pub fn new(owner: &Owner, start: usize, n_bytes: usize) -> Option<Self> {
        let bytes = owner.as_ref().as_ref().get(start..start.checked_add(n_bytes)?)?;
        // SAFETY: T is Plain, so any bytes are values of it.
        let (before, values, after) = unsafe { bytes.align_to::<T>() };
        if !before.is_empty() || !after.is_empty() {
            return None;
        }
        let owner = Arc::clone(owner);
        Some(Storage { data: NonNull::from(values).cast(), len: values.len(), owner, slice: PhantomData })
    }
}

impl<T> Deref for Storage<T> {
    type Target = [T];

    #[inline]
    #[expect(unsafe_code, reason = "the slice is in memory that the owner keeps")]
    fn deref(&self) -> &[T] {
        // SAFETY: `data` and `len` are those of a slice borrowed from `owner`, which is alive as long as self and of
        // which nobody can get a mutable reference meanwhile, since an Arc that is shared gives none.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T> Clone for Storage<T> {
    fn clone(&self) -> Self {
        Storage { data: self.data, len: self.len, owner: Arc::clone(&self.owner), slice: PhantomData }
    }
}

impl<T> fmt::Debug for Storage<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({} x {} bytes)", self.len, size_of::<T>())
    }
}

#[expect(unsafe_code, reason = "a pointer is not Send by itself")]
// SAFETY: what is pointed to is read only, by way of a shared reference to an owner that is Send and Sync.
unsafe impl<T: Sync> Send for Storage<T> {}
#[expect(unsafe_code, reason = "a pointer is not Sync by itself")]
// SAFETY: as for Send.
unsafe impl<T: Sync> Sync for Storage<T> {}

/// The bytes of `out` as values to be written; they are aligned, see [`AlignedBytes`].
#[expect(unsafe_code, reason = "writes blocks as bytes")]
pub(crate) fn cast_mut<T: Plain>(out: &mut [u8]) -> &mut [T] {
    // SAFETY: T is Plain: any bytes are values of it, and its values are all bytes.
    let (before, values, after) = unsafe { out.align_to_mut::<T>() };
    assert!(before.is_empty() && after.is_empty(), "packed weights are aligned and whole");
    values
}

/// A buffer of bytes that starts at a multiple of [`ALIGN`].
#[derive(Debug)]
pub struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

impl AlignedBytes {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        AlignedBytes { lines: vec![Line([0; ALIGN]); len.div_ceil(ALIGN)], len }
    }

    /// All of it, to be written.
    #[expect(unsafe_code, reason = "lines are bytes")]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: Line is 64 bytes without padding, and there are at least `len` of them.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBytes {
    #[expect(unsafe_code, reason = "lines are bytes")]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_aligned_blocks_inside_the_bytes_are_lent() {
        let owner: Owner = Arc::new(AlignedBytes::zeroed(256));
        let check = |start, n_bytes, expect: Option<usize>| {
            let got = Storage::<[u16; 16]>::new(&owner, start, n_bytes).map(|storage| storage.len());
            assert_eq!(got, expect, "{start} {n_bytes}");
        };
        check(0, 256, Some(8));
        check(64, 32, Some(1));
        check(0, 0, Some(0));
        check(0, 257, None);
        check(224, 64, None);
        check(0, 33, None);
        check(1, 32, None);
        check(usize::MAX, 32, None);
    }

    #[test]
    fn bytes_live_as_long_as_what_borrows_them() {
        let mut bytes = AlignedBytes::zeroed(64);
        bytes.bytes_mut()[2] = 7;
        let owner: Owner = Arc::new(bytes);
        let storage = Storage::<u16>::new(&owner, 0, 64).expect("aligned");
        let copy = storage.clone();
        drop((owner, storage));
        assert_eq!(copy[..3], [0, u16::from_le_bytes([7, 0]), 0]);
    }
}
