//! The files of a model.

use std::path::{Path, PathBuf};

use burn_deepspeed::load::{Checkpoint, ConfigOptions, Gguf, HuggingFaceConfig};
use burn_deepspeed::{ConfigError, WeightError};

/// The files of a model. A header of a GGUF file, which may have a vocabulary of megabytes, is read once.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(Gguf),
}

impl ModelFiles {
    /// A GGUF file, a folder with one and no safetensors, or any other folder, of which nothing is read yet.
    ///
    /// # Errors
    /// Those of [`Gguf::open`].
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        match Gguf::in_path(path) {
            Some(file) => Gguf::open(file).map(Self::Gguf),
            None => Ok(Self::Folder(path.into())),
        }
    }

    /// The folder, or the GGUF file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Gguf(gguf) => gguf.path(),
        }
    }

    /// The file with the configuration.
    pub fn config_path(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join("config.json"),
            Self::Gguf(gguf) => gguf.path().into(),
        }
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// Those of [`HuggingFaceConfig::read_file`].
    pub fn config(&self, options: &ConfigOptions) -> Result<HuggingFaceConfig, ConfigError> {
        match self {
            Self::Folder(_) => HuggingFaceConfig::read_file(self.config_path(), options),
            Self::Gguf(gguf) => HuggingFaceConfig::of_gguf(gguf, options),
        }
    }

    /// Opens the checkpoint.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`].
    pub fn checkpoint(&self) -> Result<Checkpoint, WeightError> {
        match self {
            Self::Folder(folder) => Checkpoint::open(folder),
            Self::Gguf(gguf) => Checkpoint::of_gguf(gguf),
        }
    }
}
