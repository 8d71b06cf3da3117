//! A configuration and the files that it is for.

use std::path::Path;

use super::HuggingFaceConfig;
use crate::checkpoint::files::Checkpoint;
use crate::checkpoint::generation_config::of_generation_config;
use crate::checkpoint::gguf::{self, Difference, Gguf};
use crate::checkpoint::layer_paths::{LayerPaths, QkNormPaths, QkvPaths};
use crate::checkpoint::options::ConfigOptions;
use crate::config::read_json;
use crate::error::{ConfigError, WeightError};
use crate::layout::Orientation;

impl HuggingFaceConfig {
    /// Reads `config.json`, and the end tokens of a `generation_config.json` in the same folder.
    ///
    /// # Errors
    /// Those of [`read_file`](Self::read_file).
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read_file(path, &ConfigOptions::default())
    }

    /// Reads `config.json`, and the end tokens of a `generation_config.json` in the same folder. If that file is there, it alone
    /// says which tokens end a text, as for `generate` of `transformers`.
    ///
    /// A file `*.gguf` holds its configuration itself: its keys become those of a `config.json`, and each key below the name of its
    /// architecture must be understood, unless `options` allows it.
    ///
    /// # Errors
    /// [`ConfigError::File`] if a file cannot be read, else those of [`read`](Self::read) in [`ConfigError::InFile`].
    pub fn read_file(path: impl AsRef<Path>, options: &ConfigOptions) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        if Gguf::is_named(path) {
            return Self::of_gguf(&gguf::open(path)?, options);
        }
        let mut config = Self::read(read_json(path)?, options).map_err(|error| error.in_file(path))?;
        if let Some(ids) = of_generation_config(path, |fields| fields.sizes("eos_token_id"))? {
            config.eos_token_ids = ids;
        }
        Ok(config)
    }

    /// Reads what the header of a GGUF file says, as [`read_file`](Self::read_file) does.
    ///
    /// # Errors
    /// Those of [`read`](Self::read) in [`ConfigError::InFile`].
    pub fn of_gguf(gguf: &Gguf, options: &ConfigOptions) -> Result<Self, ConfigError> {
        let read = || {
            let architecture = gguf::architecture(gguf)?;
            let mut config = Self::read(gguf::record(gguf, &options.allowed_keys)?, options)?;
            config.gguf = Some(architecture.name);
            architecture.differences.iter().for_each(|difference| config.differ(*difference));
            Ok(config)
        };
        read().map_err(|error: ConfigError| error.in_file(gguf.path()))
    }

    /// Expects what the converter of a GGUF file stores in another form.
    fn differ(&mut self, difference: Difference) {
        let layer: &mut LayerPaths = &mut self.paths.0;
        match difference {
            Difference::WholeNorms => {
                layer.norm_plus_one = false;
                let norms = self.attention.kinds.iter_mut().filter_map(|kind| kind.qk_norm.as_mut());
                norms.for_each(|norm| norm.plus_one = false);
            }
            Difference::OutputInput => layer.orientation = Orientation::OutputInput,
            Difference::QkNorms(paths) => layer.qk_norm = layer.qk_norm.map(|_| QkNormPaths::Whole(paths)),
            Difference::MlpNorm([from, to]) => {
                let norm = self.paths.1.as_mut().and_then(|decoder| decoder.mlp_norm.as_mut());
                norm.filter(|norm| **norm == from).into_iter().for_each(|norm| *norm = to);
            }
            Difference::Qkv(layout) => {
                if let QkvPaths::Fused(path, _) = layer.qkv {
                    layer.qkv = QkvPaths::Fused(path, layout);
                }
            }
        }
    }

    /// Checks the number of layers, the sizes of their attention, and the number of experts against the checkpoint. Do this before you
    /// build a model: a file may state any number, and a model allocates memory for each layer and expert.
    ///
    /// # Errors
    /// [`WeightError::Missing`] or [`WeightError::Shape`], about the output projection, or an expert, of the first layer that does not
    /// fit. [`WeightError::File`] if only one of them is from a GGUF file, whose weights may have another form.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), WeightError> {
        if self.gguf != checkpoint.gguf() {
            let cause = "a GGUF file and its configuration belong together: read both from the file, with \
                         `HuggingFaceConfig::read_file` and `Checkpoint::open`";
            return Err(WeightError::File { path: checkpoint.path().into(), cause: cause.into() });
        }
        // The first missing layer ends the loop, so its length is bounded by the number of tensors in the checkpoint.
        (0..self.layers).try_for_each(|layer| {
            let names = self.attention_names(checkpoint, layer);
            let kind = self.kind(self.attention.layers.of(layer));
            let head = self.latent.map_or(kind.head_size(), |sizes| sizes.v_head_dim);
            let (inputs, hidden) = (kind.heads.saturating_mul(head), kind.hidden_size);
            checkpoint.check_shape(&names.output.matrix, &names.orientation.shape(inputs, hidden))?;
            let Some((experts, sizes)) = self.experts(layer) else { return Ok(()) };
            experts.check_layer((checkpoint, &self.layer_path(checkpoint, layer)), sizes, hidden)
        })
    }
}
