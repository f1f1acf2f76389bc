//! A slice that tasks write parts of at the same time.

use std::marker::PhantomData;

/// A slice whose parts are handed to tasks, each part to one at a time.
pub(crate) struct SharedOut<'a, T> {
    data: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts of an exclusively borrowed slice, and whoever takes one answers for their being apart.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for SharedOut<'_, T> {}

impl<'a, T> SharedOut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// `n` entries from `first` on.
    ///
    /// # Panics
    /// When they are not all inside the slice.
    ///
    /// # Safety
    /// No other part that is in use may overlap them.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, first: usize, n: usize) -> &mut [T] {
        assert!(first <= self.len && n <= self.len - first, "a part outside the slice");
        // SAFETY: inside the slice, which is exclusively borrowed, and the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(first), n) }
    }

    /// Where entry `first` lies, of which `n` are inside the slice: for who writes some of them beside others' parts.
    ///
    /// # Panics
    /// When they are not all inside the slice.
    #[inline(always)]
    pub(crate) fn place(&self, first: usize, n: usize) -> *mut T {
        assert!(first <= self.len && n <= self.len - first, "a part outside the slice");
        self.data.wrapping_add(first)
    }
}
