//! Which tensors of a checkpoint were loaded, and which were not.

use std::collections::BTreeSet;
use std::fmt;

use crate::error::WeightError;

/// A tensor whose element type was changed while loading.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conversion {
    /// The tensor.
    pub name: String,
    /// Element type in the file.
    pub from: String,
    /// Element type in the module.
    pub to: String,
}

/// Which tensors of a checkpoint were loaded, missing or unexpected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadReport {
    /// Read into a module.
    pub loaded: Vec<String>,
    /// Asked for, but not in the checkpoint.
    pub missing: Vec<String>,
    /// In the checkpoint, but neither asked for nor ignored.
    pub unexpected: Vec<String>,
    /// Loaded with another element type.
    pub converted: Vec<Conversion>,
}

impl LoadReport {
    /// The report itself, if nothing is unexpected.
    pub(super) fn complete(self) -> Result<Self, WeightError> {
        match self.unexpected.is_empty() {
            true => Ok(self),
            false => Err(WeightError::Unused(self.unexpected)),
        }
    }

    /// The report of several files of one checkpoint. A tensor counts as loaded if a part of it was, from any file.
    pub(super) fn merged(reports: impl Iterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for Self { loaded, missing, unexpected, converted } in reports {
            all.loaded.extend(loaded);
            all.missing.extend(missing);
            all.unexpected.extend(unexpected);
            all.converted.extend(converted);
        }
        for names in [&mut all.loaded, &mut all.missing, &mut all.unexpected] {
            names.sort();
            names.dedup();
        }
        all.converted.sort();
        all.converted.dedup();
        all.unexpected.retain(|name| all.loaded.binary_search(name).is_err());
        all
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} loaded, {} missing, {} unexpected, {} converted",
            self.loaded.len(),
            self.missing.len(),
            self.unexpected.len(),
            self.converted.len()
        )?;
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            for name in names {
                write!(f, "\n  {what}: {name}")?;
            }
        }
        Ok(())
    }
}

/// The tensors that were requested from a checkpoint so far.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) loaded: BTreeSet<String>,
    pub(super) ignored: BTreeSet<String>,
    pub(super) missing: BTreeSet<String>,
    pub(super) converted: Vec<Conversion>,
}

impl Log {
    pub(super) fn convert(&mut self, conversion: Conversion) {
        if conversion.from != conversion.to && !self.converted.contains(&conversion) {
            self.converted.push(conversion);
        }
    }

    /// The report on a checkpoint with the tensors `names`.
    pub(super) fn report<'a>(&self, names: impl Iterator<Item = &'a String>) -> LoadReport {
        let unexpected = names.filter(|name| !self.loaded.contains(*name) && !self.ignored.contains(*name));
        LoadReport {
            loaded: self.loaded.iter().cloned().collect(),
            missing: self.missing.iter().cloned().collect(),
            unexpected: unexpected.cloned().collect(),
            converted: self.converted.clone(),
        }
    }
}
