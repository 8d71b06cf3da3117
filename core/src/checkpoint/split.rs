//! A checkpoint that several ranks wrote, a file each.

use std::path::Path;

use super::files::Checkpoint;
use super::report::LoadReport;
use crate::error::WeightError;

/// The files of the ranks that wrote a checkpoint, in rank order: Megatron's and DeepSpeed's `mp_rank_00`, `mp_rank_01`, ….
///
/// Each file holds, under the same names, the part of its rank:
/// - QKV matrices and biases, cut along their outputs by heads, in the named layout for these heads; key/value heads are
///   replicated if there are fewer of them than ranks,
/// - the output projection, cut along its inputs,
/// - norm and output bias, whole and the same in each file,
/// - the scales of its part, for int8 matrices.
///
/// Any number of files loads into any number of ranks that the heads allow, bit for bit. A rank reads only what it needs.
/// [`CheckpointWriter`](super::CheckpointWriter) writes such files.
#[derive(Debug)]
pub struct SplitCheckpoint {
    files: Vec<Checkpoint>,
}

impl SplitCheckpoint {
    /// Opens a file or folder for each rank, in rank order; see [`Checkpoint::open`].
    ///
    /// # Errors
    /// [`WeightError::File`] if one is missing or is neither safetensors nor GGUF; [`WeightError::NoFiles`].
    pub fn open(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self, WeightError> {
        let open = |path: _| Checkpoint::open_one_of_several(AsRef::<Path>::as_ref(&path));
        let files = paths.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        match files.is_empty() {
            true => Err(WeightError::NoFiles),
            false => Ok(Self { files }),
        }
    }

    /// The files in rank order. [`AttentionNames::deepspeed`](super::AttentionNames::deepspeed) and the like look names up in
    /// one of them.
    pub fn files(&self) -> &[Checkpoint] {
        &self.files
    }

    /// The files, if `ranks` ranks can have written them; 1 means any number.
    ///
    /// # Errors
    /// [`WeightError::FileCount`].
    pub fn files_of(&self, ranks: usize) -> Result<&[Checkpoint], WeightError> {
        match ranks == 1 || ranks == self.files.len() {
            true => Ok(&self.files),
            false => Err(WeightError::FileCount { files: self.files.len(), ranks }),
        }
    }

    /// [`Checkpoint::ignore`], in every file.
    pub fn ignore(&self, unwanted: impl Fn(&str) -> bool) {
        self.files.iter().for_each(|file| file.ignore(&unwanted));
    }

    /// What was loaded so far, and what was not. A tensor counts as loaded if a part of it was, from any file: no rank reads
    /// more than its own part.
    pub fn report(&self) -> LoadReport {
        LoadReport::merged(self.files.iter().map(Checkpoint::report))
    }

    /// The report, if every tensor was loaded or ignored.
    ///
    /// # Errors
    /// [`WeightError::Unused`] with the names of the others.
    pub fn finish(&self) -> Result<LoadReport, WeightError> {
        self.report().complete()
    }
}
