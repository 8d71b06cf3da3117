//! Where the tensors are.

use std::collections::BTreeMap;
use std::io::Read;

use super::element::element;
use super::source::{Problem, Source};
use crate::checkpoint::stored::Stored;

/// Most axes of a tensor.
pub(super) const AXES: u32 = 4;

/// Least bytes of an entry: the lengths of its name and its shape, type and offset.
const ENTRY: u64 = 24;

/// A tensor, which starts at a byte of the data, and its bytes.
type Entry = (Stored, u64);

/// The entries of `count` tensors. Offsets count from the first multiple of `alignment` after them.
pub(super) fn read(
    source: &mut Source<impl Read>,
    count: u64,
    alignment: u64,
) -> Result<BTreeMap<String, Stored>, Problem> {
    source.expect(count, ENTRY, "tensors")?;
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for _ in 0..count {
        let name = source.text()?;
        let entry = entry(source, alignment).map_err(|problem| format!("`{name}` {problem}"))?;
        if entries.contains_key(&name) {
            return Err(format!("it has two tensors `{name}`"));
        }
        entries.insert(name, entry);
    }
    let data = source.position.next_multiple_of(alignment);
    let mut in_order: Vec<_> = entries.iter_mut().collect();
    in_order.sort_by_key(|(_, (stored, bytes))| (stored.start, *bytes));
    let mut free = 0;
    for (name, (stored, bytes)) in in_order {
        if stored.start < free {
            return Err(format!("`{name}` begins at byte {} of the data, inside of another tensor", stored.start));
        }
        free = stored.start.saturating_add(*bytes);
        let (end, length) = (data.saturating_add(free), source.length);
        if end > length {
            return Err(format!("`{name}` ends at byte {end}, and it has {length}; it is not complete"));
        }
        stored.start += data;
    }
    Ok(entries.into_iter().map(|(name, (stored, _))| (name, stored)).collect())
}

/// What follows the name of a tensor.
fn entry(source: &mut Source<impl Read>, alignment: u64) -> Result<Entry, Problem> {
    let axes = source.u32()?;
    if axes > AXES {
        return Err(format!("has {axes} axes; a tensor has at most {AXES}"));
    }
    let mut shape = Vec::new();
    for _ in 0..axes {
        let size = source.u64()?;
        shape.push(usize::try_from(size).map_err(|_| format!("has an axis of {size}"))?);
    }
    let element = element(source.u32()?)?;
    let start = source.u64()?;
    if !start.is_multiple_of(alignment) {
        return Err(format!("begins at byte {start} of the data, which is no multiple of {alignment}"));
    }
    // The first axis is contiguous.
    let (in_unit, bytes) = element.unit();
    let row = shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(in_unit) {
        return Err(format!("has rows of {row} elements, and blocks of {element} have {in_unit}"));
    }
    let elements = shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
    let bytes = elements.and_then(|elements| (elements / in_unit).checked_mul(bytes));
    let bytes = bytes.ok_or_else(|| format!("has more elements than memory has bytes: {shape:?}"))?;
    shape.reverse();
    Ok((Stored { element, shape, start }, bytes as u64))
}
