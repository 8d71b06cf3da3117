//! A piece of device memory. Its device addresses are its host addresses, so that other libraries in the process can use it, too.

use std::alloc::{Layout, alloc, dealloc};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::Bytes;
use super::race::{Accesses, Accessor};
use crate::error::Misuse;
use crate::numbers::little_endian;

/// Alignment of allocations in bytes; that of CUDA is at least this.
const ALIGN: usize = 512;

/// A piece of device memory.
#[derive(Debug)]
pub struct Allocation {
    start: u64,
    layout: Layout,
    bytes: usize,
    /// A bit for each byte that was written.
    written: Vec<AtomicU16>,
    accesses: Accesses,
}

impl Allocation {
    /// Memory that nothing has written; `None` if the host has no more.
    pub fn new(bytes: usize) -> Option<Self> {
        let bytes = bytes.max(1);
        let layout = Layout::from_size_align(bytes.next_multiple_of(16), ALIGN).ok()?;
        // SAFETY: the layout has a size above 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return None;
        }
        // A NaN in every float type, so that what should not be read is noticed in results as well.
        // SAFETY: `start` is the beginning of `layout.size()` bytes that belong to this function alone.
        unsafe { start.write_bytes(0xff, layout.size()) };
        let written = (0..bytes.div_ceil(16)).map(|_| AtomicU16::new(0)).collect();
        Some(Self { start: start as u64, layout, bytes, written, accesses: Accesses::new(bytes) })
    }

    /// The address of its first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The address after its last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes as u64
    }

    /// Whether all these bytes are in it.
    pub fn holds(&self, address: u64, bytes: u64) -> bool {
        self.start <= address && address.checked_add(bytes).is_some_and(|end| end <= self.end())
    }

    /// Notes that the host wrote bytes.
    fn mark_written(&self, address: u64, bytes: usize) {
        let (first, end) = ((address - self.start) as usize, (address - self.start) as usize + bytes);
        for group in first / 16..end.div_ceil(16) {
            let (from, to) = (first.saturating_sub(group * 16), (end - group * 16).min(16));
            let bits = (((1u32 << (to - from)) - 1) << from) as u16;
            self.written[group].fetch_or(bits, Relaxed);
        }
    }

    /// Notes that an aligned word counts as unwritten, whatever it holds. The caller checked that it is inside.
    pub fn mark_unwritten(&self, word: u64) {
        let (group, bits) = Self::bits(word - self.start, 4);
        self.written[group].fetch_and(!bits, Relaxed);
    }

    /// The bits of an aligned access of at most 16 bytes in the group of 16 that holds it.
    fn bits(offset: u64, bytes: u64) -> (usize, u16) {
        ((offset / 16) as usize, (((1u32 << bytes) - 1) << (offset % 16)) as u16)
    }

    /// Whether an aligned access of at most 16 bytes reads only what was written.
    pub fn check_written(&self, address: u64, bytes: u64) -> Result<(), Misuse> {
        let (group, bits) = Self::bits(address - self.start, bytes);
        match self.written[group].load(Relaxed) & bits == bits {
            true => Ok(()),
            false => Err(Misuse::Uninitialised { what: format!("{bytes} bytes at {address:#x} of global memory") }),
        }
    }

    /// Reads `count` elements of `each` bytes for a block. The address is aligned and inside.
    pub fn load(&self, address: u64, each: u64, count: usize, by: Option<Accessor>) -> Result<Bytes, Misuse> {
        let (offset, total) = (address - self.start, each * count as u64);
        if let Some(by) = by {
            self.accesses.read(offset, total, by).map_err(|other| race(address, other))?;
        }
        let mut bytes = [0; 16];
        for (element, bytes) in bytes.chunks_exact_mut(each as usize).take(count).enumerate() {
            let at = address + element as u64 * each;
            // SAFETY: the caller checked that the access is aligned and inside of this allocation, which lives as long as
            // `self`. The element is an atomic, so that kernels which race do not make the host undefined.
            unsafe {
                match each {
                    1 => bytes.copy_from_slice(&AtomicU8::from_ptr(at as *mut u8).load(Relaxed).to_le_bytes()),
                    2 => bytes.copy_from_slice(&AtomicU16::from_ptr(at as *mut u16).load(Relaxed).to_le_bytes()),
                    4 => bytes.copy_from_slice(&AtomicU32::from_ptr(at as *mut u32).load(Relaxed).to_le_bytes()),
                    _ => bytes.copy_from_slice(&AtomicU64::from_ptr(at as *mut u64).load(Relaxed).to_le_bytes()),
                }
            }
        }
        Ok(bytes)
    }

    /// Writes `count` elements of `each` bytes for a block. The address is aligned and inside.
    pub fn store(
        &self,
        address: u64,
        each: u64,
        count: usize,
        bytes: &Bytes,
        by: Option<Accessor>,
    ) -> Result<(), Misuse> {
        let (offset, total) = (address - self.start, each * count as u64);
        if let Some(by) = by {
            self.accesses.write(offset, total, by).map_err(|other| race(address, other))?;
        }
        let (group, bits) = Self::bits(offset, total);
        self.written[group].fetch_or(bits, Relaxed);
        for (element, bytes) in bytes.chunks_exact(each as usize).take(count).enumerate() {
            let at = address + element as u64 * each;
            let value = little_endian(bytes);
            // SAFETY: as in `load`.
            unsafe {
                match each {
                    1 => AtomicU8::from_ptr(at as *mut u8).store(value as u8, Relaxed),
                    2 => AtomicU16::from_ptr(at as *mut u16).store(value as u16, Relaxed),
                    4 => AtomicU32::from_ptr(at as *mut u32).store(value as u32, Relaxed),
                    _ => AtomicU64::from_ptr(at as *mut u64).store(value, Relaxed),
                }
            }
        }
        Ok(())
    }

    /// Replaces an element by a function of it, atomically among all blocks; returns the element before.
    pub fn update(
        &self,
        address: u64,
        each: u64,
        by: Option<Accessor>,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Misuse> {
        self.check_written(address, each)?;
        let offset = address - self.start;
        if let Some(by) = by {
            self.accesses.update(offset, each, by).map_err(|other| race(address, other))?;
        }
        let change = |value| Some(change(value));
        // SAFETY: as in `load`.
        Ok(unsafe {
            match each {
                2 => AtomicU16::from_ptr(address as *mut u16)
                    .fetch_update(Relaxed, Relaxed, |value| change(value.into()).map(|value: u64| value as u16))
                    .unwrap_or_else(|value| value)
                    .into(),
                4 => AtomicU32::from_ptr(address as *mut u32)
                    .fetch_update(Relaxed, Relaxed, |value| change(value.into()).map(|value: u64| value as u32))
                    .unwrap_or_else(|value| value)
                    .into(),
                _ => AtomicU64::from_ptr(address as *mut u64)
                    .fetch_update(Relaxed, Relaxed, change)
                    .unwrap_or_else(|value| value),
            }
        })
    }

    /// Writes bytes for the host. The caller checked that they are inside.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.mark_written(address, bytes.len());
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `load`.
            unsafe { AtomicU8::from_ptr((address + at as u64) as *mut u8).store(*byte, Relaxed) };
        }
    }

    /// Reads bytes for the host. The caller checked that they are inside.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        // SAFETY: as in `load`.
        let byte = |at: usize| unsafe { AtomicU8::from_ptr((address + at as u64) as *mut u8).load(Relaxed) };
        (0..bytes).map(byte).collect()
    }

    /// Forgets which block did what; needed before an epoch is used again.
    pub fn forget_accesses(&self) {
        self.accesses.forget();
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this layout, and nothing else frees it.
        unsafe { dealloc(self.start as *mut u8, self.layout) };
    }
}

fn race(address: u64, other: String) -> Misuse {
    Misuse::Race { space: "global", address, other }
}
