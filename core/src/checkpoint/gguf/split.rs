//! A model in several files, as `llama-gguf-split` writes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::source::Problem;
use crate::error::WeightError;

/// The part that a file is, counted from 0.
const NUMBER: &str = "split.no";
pub(super) const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Digits of a number in a name.
const DIGITS: usize = 5;

/// What the first part says about all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    number: usize,
    count: usize,
    tensors: usize,
}

/// Another part than the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    number: usize,
    count: usize,
}

/// `NAME-00001-of-00003.gguf`, with numbers from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name<'a> {
    start: &'a str,
    number: usize,
    count: usize,
}

impl Split {
    /// What a header says; `None` for a whole model.
    pub(super) fn of(metadata: &BTreeMap<String, Metadata>) -> Result<Option<Self>, Problem> {
        let size = |key: &str| match metadata.get(key) {
            None => Ok(None),
            Some(value) => {
                whole(value).map(Some).ok_or_else(|| format!("`{key}` is {value}; it must be a whole number"))
            }
        };
        let Some(count) = size(COUNT)?.filter(|&count| count > 1) else { return Ok(None) };
        let required = |key: &str| size(key)?.ok_or_else(|| format!("it is one of {count} parts, and has no `{key}`"));
        Ok(Some(Self { number: required(NUMBER)?, count, tensors: required(TENSORS)? }))
    }

    /// The other parts, which are next to the first, in their order.
    ///
    /// # Errors
    /// [`WeightError::File`] if this is not the first, if it has not the name of a first part, or if another part is not there.
    pub(super) fn others(&self, path: &Path) -> Result<Vec<Part>, WeightError> {
        let &Self { number, count, .. } = self;
        let failed = |cause: String| WeightError::File { path: path.into(), cause };
        if number > 0 {
            let first = first_part(path);
            let first = if first == path { "the one with 0 as `split.no`".into() } else { first.display().to_string() };
            return Err(failed(format!("it is part {} of {count}; open the first, {first}", number + 1)));
        }
        let name = Name::of(path).filter(|name| (name.number, name.count) == (1, count)).ok_or_else(|| {
            let end = Name { start: "", number: 1, count }.file();
            failed(format!(
                "it is the first of {count} parts, which are found by their names; its own must end with `{end}`"
            ))
        })?;
        let mut parts = Vec::new();
        for number in 1..count {
            let path = path.with_file_name(Name { number: number + 1, ..name }.file());
            if !path.exists() {
                let cause =
                    format!("it is part {} of {count}, and is not there; put all parts into one folder", number + 1);
                return Err(WeightError::File { path, cause });
            }
            parts.push(Part { path, number, count });
        }
        Ok(parts)
    }

    /// Checks how many tensors all parts have.
    pub(super) fn check(&self, tensors: usize) -> Result<(), Problem> {
        match tensors == self.tensors {
            true => Ok(()),
            false => Err(format!(
                "its {} parts have {tensors} tensors, and `{TENSORS}` is {}; one of them is of another model",
                self.count, self.tensors
            )),
        }
    }
}

impl Part {
    /// Checks that a header is that of this part: its number, and that what it says is what the first part says.
    pub(super) fn check(
        &self,
        metadata: &BTreeMap<String, Metadata>,
        first: &BTreeMap<String, Metadata>,
    ) -> Result<(), Problem> {
        let own = |key: &str| metadata.get(key).map_or("absent".into(), Metadata::to_string);
        if metadata.get(NUMBER).and_then(whole) != Some(self.number) {
            let (own, number) = (own(NUMBER), self.number);
            return Err(format!(
                "it has the name of part {} of {}, but `{NUMBER}` is {own}, not {number}",
                number + 1,
                self.count
            ));
        }
        let mut keys =
            [COUNT, TENSORS].into_iter().chain(metadata.keys().map(String::as_str).filter(|key| *key != NUMBER));
        let other = keys.find(|key| match (metadata.get(*key), first.get(*key)) {
            (Some(own), Some(first)) => own != first,
            (own, _) => own.is_none(),
        });
        match other {
            None => Ok(()),
            Some(key) => {
                let first = first.get(key).map_or("absent".into(), Metadata::to_string);
                Err(format!("it is a part of another model: `{key}` is {}, and {first} in the first part", own(key)))
            }
        }
    }
}

impl<'a> Name<'a> {
    fn of(path: &'a Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (name, count) = name.rsplit_once("-of-")?;
        let (start, number) = name.rsplit_once('-')?;
        let number_of = |digits: &str| {
            let fits = digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_digit());
            fits.then(|| digits.parse().ok()).flatten()
        };
        Some(Self { start, number: number_of(number)?, count: number_of(count)? })
    }

    fn file(&self) -> String {
        let Self { start, number, count } = self;
        format!("{start}-{number:0DIGITS$}-of-{count:0DIGITS$}.gguf")
    }
}

/// The first of the parts that the name of a file belongs to; the file itself, if it is not that of a part.
pub(super) fn first_part(path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    Name::of(path).map_or(path.into(), |name| path.with_file_name(Name { number: 1, ..name }.file()))
}

fn whole(value: &Metadata) -> Option<usize> {
    match value {
        &Metadata::Integer(value) => usize::try_from(value).ok(),
        _ => None,
    }
}
