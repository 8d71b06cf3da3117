//! Bytes of a header, none of which is read or allocated before it is known to be in the file.

use std::fs::File;
use std::io::{BufReader, Read};

/// Longest header that is read, in bytes. That of a vocabulary of 260,000 tokens has 10 MB.
pub(super) const LONGEST_HEADER: u64 = 100_000_000;

/// Why a header could not be read.
pub(super) type Problem = String;

/// The bytes of a header, in order.
#[derive(Debug)]
pub(super) struct Source<R> {
    reader: R,
    /// Bytes that were read.
    pub(super) position: u64,
    /// Bytes of the file.
    pub(super) length: u64,
}

impl Source<BufReader<File>> {
    pub(super) fn of_file(file: File, length: u64) -> Self {
        Self { reader: BufReader::new(file), position: 0, length }
    }
}

impl<R: Read> Source<R> {
    /// An error unless `count` items of at least `size` bytes each may follow.
    pub(super) fn expect(&self, count: u64, size: u64, what: &str) -> Result<usize, Problem> {
        let (bytes, end) = (count.saturating_mul(size), self.length.min(LONGEST_HEADER));
        match bytes <= self.length - self.position {
            false => Err(format!(
                "it states {count} {what} at byte {}, and {} bytes follow; it was cut short or is damaged",
                self.position,
                self.length - self.position
            )),
            true if self.position + bytes > end => Err(format!("its header has more than {LONGEST_HEADER} bytes")),
            true => usize::try_from(count).map_err(|_| format!("it states {count} {what}")),
        }
    }

    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        self.expect(N as u64, 1, "bytes")?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|cause| cause.to_string())?;
        self.position += N as u64;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Problem> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A text after its length.
    pub(super) fn text(&mut self) -> Result<String, Problem> {
        let length = self.u64()?;
        let length = self.expect(length, 1, "bytes of a text")?;
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).map_err(|cause| cause.to_string())?;
        self.position += length as u64;
        String::from_utf8(bytes).map_err(|_| format!("a text before byte {} is not UTF-8", self.position))
    }
}
