//! A checkpoint that several ranks wrote, a file each.

use std::path::Path;

use super::{Checkpoint, LoadReport};
use crate::error::WeightError;

/// The files of the ranks that wrote a checkpoint, in rank order: Megatron's and DeepSpeed's `mp_rank_00`, `mp_rank_01`, ….
///
/// Each holds, under the same names, what its rank had: QKV matrices and biases cut along their outputs by heads, in the named
/// layout for these heads (key/value heads are replicated if there are fewer than ranks); the output projection cut along its
/// inputs; norm and output bias whole, the same in each. Matrices of int8 have the scales of their part, in each file. Any
/// number of files loads into any number of ranks that the heads allow, bit for bit, and a rank reads what it needs.
/// [`CheckpointWriter`](super::CheckpointWriter) writes such files.
///
/// ```
/// # use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig};
/// # use burn_deepspeed::load::{AttentionNames, CheckpointWriter, NormNames, QkvLayout, QkvNames, SplitCheckpoint, WeightNames};
/// # use burn_deepspeed::weight::Orientation;
/// # use burn_ndarray::NdArray;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let device = Default::default();
/// # let names = AttentionNames {
/// #     norm: Some(NormNames::of("norm")),
/// #     qkv: QkvNames::fused("qkv", QkvLayout::Concat),
/// #     output: WeightNames::of("output"),
/// #     orientation: Orientation::OutputInput,
/// # };
/// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
/// let paths = [0, 1].map(|rank| folder.path().join(format!("mp_rank_0{rank}.safetensors")));
/// for (rank, path) in paths.iter().enumerate() {
///     let config = config.clone().with_mp_size(2).with_local_rank(Some(rank));
///     let mut writer = CheckpointWriter::default();
///     config.init_self_attention::<NdArray>(0, &device)?.write(&mut writer, &names)?;
///     writer.save(path)?;
/// }
///
/// // written by two ranks, read by the third of four
/// let split = SplitCheckpoint::open(&paths)?;
/// let config = config.with_mp_size(4).with_local_rank(Some(2)).with_training_mp_size(2);
/// let attention = config.init_self_attention::<NdArray>(0, &device)?.load_split(&split, &names)?;
/// println!("{}", split.finish()?);
/// # let _ = attention;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct SplitCheckpoint {
    files: Vec<Checkpoint>,
}

impl SplitCheckpoint {
    /// Opens a file or folder for each rank, in rank order; see [`Checkpoint::open`].
    ///
    /// # Errors
    /// [`WeightError::File`] if one is not there or is not safetensors, [`WeightError::NoFiles`].
    pub fn open(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self, WeightError> {
        let open = |path: _| Checkpoint::open_one_of_several(AsRef::<Path>::as_ref(&path));
        let files = paths.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        match files.is_empty() {
            true => Err(WeightError::NoFiles),
            false => Ok(Self { files }),
        }
    }

    /// The files in rank order: [`AttentionNames::deepspeed`](super::AttentionNames::deepspeed) and the like look names up in
    /// one of them.
    pub fn files(&self) -> &[Checkpoint] {
        &self.files
    }

    /// The files, if so many ranks can have written them; 1 stands for any number.
    pub(super) fn files_of(&self, ranks: usize) -> Result<&[Checkpoint], WeightError> {
        match ranks == 1 || ranks == self.files.len() {
            true => Ok(&self.files),
            false => Err(WeightError::FileCount { files: self.files.len(), ranks }),
        }
    }

    /// [`Checkpoint::ignore`], in every file.
    pub fn ignore(&self, unwanted: impl Fn(&str) -> bool) {
        self.files.iter().for_each(|file| file.ignore(&unwanted));
    }

    /// What was loaded so far, and what was not. A tensor is loaded if a part of it was, out of any file: no rank reads more
    /// than its own.
    pub fn report(&self) -> LoadReport {
        let mut all = LoadReport::default();
        for file in &self.files {
            let LoadReport { loaded, missing, unexpected, converted } = file.report();
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

    /// The report, if every tensor was loaded or ignored.
    ///
    /// # Errors
    /// [`WeightError::Unused`] with the names of the others.
    pub fn finish(&self) -> Result<LoadReport, WeightError> {
        self.report().complete()
    }
}
