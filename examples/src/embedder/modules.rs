//! The modules of a sentence encoder, as `modules.json` of `sentence-transformers` lists them.

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::fields::{Fields, shown};
use burn_deepspeed::load::Gguf;
use burn_deepspeed::{ConfigError, InferenceBackend};
use serde_json::Value;

use super::dense::Dense;
use super::encoder::States;
use super::pooling::Pooling;
use super::{Scaling, unit_length};
use crate::Failure;

/// Which modules a checkpoint has, and where they are.
pub struct ModuleList {
    /// The folder of the encoder itself, or its GGUF file.
    pub encoder: PathBuf,
    pooling: PoolingSource,
    after: Vec<(Kind, PathBuf)>,
    origin: Origin,
}

/// Where the pooling is.
enum PoolingSource {
    /// What the class makes itself, or the mean over all tokens.
    OfClass,
    Folder(PathBuf),
    Given(Pooling),
}

/// What says which modules there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    ModulesJson,
    Gguf,
    /// A folder without a `modules.json`.
    Folder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Transformer,
    Pooling,
    Dense,
    Normalize,
    /// Nothing outside of training.
    Dropout,
}

impl Kind {
    const NAMES: [(&str, Self); 5] = [
        ("Transformer", Self::Transformer),
        ("Pooling", Self::Pooling),
        ("Dense", Self::Dense),
        ("Normalize", Self::Normalize),
        ("Dropout", Self::Dropout),
    ];

    /// The module of a class of `sentence-transformers`, by its path in Python.
    fn of(path: &str) -> Option<Self> {
        let name = path.strip_prefix("sentence_transformers.")?.rsplit('.').next()?;
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }
}

impl ModuleList {
    /// Reads `modules.json`. Without it the folder is an encoder, with the pooling of `1_Pooling`, that of its class, or the mean.
    ///
    /// # Errors
    /// An error that names a module that is not supported.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let file = folder.join("modules.json");
        let Some(record) = super::json(&file)? else {
            let pooling = folder.join("1_Pooling");
            let pooling = match pooling.join("config.json").exists() {
                true => PoolingSource::Folder(pooling),
                false => PoolingSource::OfClass,
            };
            return Ok(Self { encoder: folder.into(), pooling, after: Vec::new(), origin: Origin::Folder });
        };
        Self::listed(&record, folder).map_err(|error| error.in_file(&file).into())
    }

    /// A GGUF file, which says the pooling.
    ///
    /// # Errors
    /// Those of [`Pooling::of_gguf`].
    pub fn of_gguf(gguf: &Gguf) -> Result<Self, ConfigError> {
        let pooling = PoolingSource::Given(Pooling::of_gguf(gguf)?);
        Ok(Self { encoder: gguf.path().into(), pooling, after: Vec::new(), origin: Origin::Gguf })
    }

    fn listed(record: &Value, folder: &Path) -> Result<Self, ConfigError> {
        let list = record.as_array().ok_or_else(|| ConfigError::WrongType {
            key: "modules.json".into(),
            found: shown(record),
            expected: "a list of modules",
        })?;
        let mut modules = Vec::new();
        for (at, entry) in list.iter().enumerate() {
            let fields = Fields::nested(&format!("[{at}]"), entry)?;
            fields.check_keys(&["idx", "name", "path", "type"], "a list of modules")?;
            let kind = fields.text(&["type"])?.and_then(Kind::of).ok_or_else(|| {
                fields.unsupported(
                    "type",
                    "Transformer, Pooling, Dense, Normalize and Dropout of `sentence_transformers`",
                )
            })?;
            modules.push((kind, folder.join(fields.text(&["path"])?.unwrap_or_default())));
        }
        let order = |supported: &str| ConfigError::Unsupported {
            key: "modules.json".into(),
            value: format!("{:?}", modules.iter().map(|(kind, _)| kind).collect::<Vec<_>>()),
            supported: supported.into(),
        };
        match modules.as_slice() {
            [(Kind::Transformer, encoder), (Kind::Pooling, pooling), after @ ..] => {
                if after.iter().any(|(kind, _)| matches!(kind, Kind::Transformer | Kind::Pooling)) {
                    return Err(order("one Transformer and one Pooling"));
                }
                let (encoder, pooling) = (encoder.clone(), PoolingSource::Folder(pooling.clone()));
                Ok(Self { encoder, pooling, after: after.to_vec(), origin: Origin::ModulesJson })
            }
            _ => Err(order("a Transformer, a Pooling, and then Dense, Normalize and Dropout")),
        }
    }
}

/// The modules after the encoder.
pub struct Modules<B: Backend> {
    /// `None` for the vector that the class makes itself.
    pooling: Option<Pooling>,
    after: Vec<Module<B>>,
    origin: Origin,
}

enum Module<B: Backend> {
    Dense(Box<Dense<B>>),
    Normalize,
}

impl<B: InferenceBackend> Modules<B> {
    /// Reads the folders of the modules, for an encoder with states of `width` features. `own` says that its class makes a vector
    /// itself, which is taken if the folder says nothing else.
    ///
    /// # Errors
    /// An error that names the file and the key or the tensor.
    pub fn open(
        list: &ModuleList,
        (width, own): (usize, bool),
        allowed: &[String],
        device: &B::Device,
    ) -> Result<Self, Failure> {
        let pooling = match &list.pooling {
            PoolingSource::OfClass if own => None,
            PoolingSource::OfClass => Some(Pooling::mean()),
            PoolingSource::Given(pooling) => Some(pooling.clone()),
            PoolingSource::Folder(folder) => {
                let file = folder.join("config.json");
                let record = super::json(&file)?.ok_or_else(|| format!("{} is missing", file.display()))?;
                let fields = Fields::new(&record).map(|fields| fields.allowing(allowed));
                let pooling = fields.and_then(|fields| Pooling::read(&fields, width));
                Some(pooling.map_err(|error| error.in_file(&file))?)
            }
        };
        let (mut after, mut width) = (Vec::new(), width * pooling.as_ref().map_or(1, |pooling| pooling.modes.len()));
        for (kind, folder) in &list.after {
            after.push(match kind {
                Kind::Dense => {
                    let (dense, outputs) = Dense::open(folder, width, allowed, device)?;
                    width = outputs;
                    Module::Dense(Box::new(dense))
                }
                Kind::Normalize => {
                    normalize(folder).map_err(|error| error.in_file(&folder.join("config.json")))?;
                    Module::Normalize
                }
                _ => continue,
            });
        }
        Ok(Self { pooling, after, origin: list.origin })
    }

    /// The vectors of sentences. `lengths` are their tokens, of which the first `prompt` are those of a prompt. Padding is on the right.
    ///
    /// # Shapes
    /// - output: `[B, features]`
    pub fn forward(&self, states: States<B>, lengths: &[usize], prompt: usize, scaling: Scaling) -> Tensor<B, 2> {
        let pooled = match (&self.pooling, states.vectors) {
            (None, Some(vectors)) => vectors,
            (Some(pooling), _) => pooling.forward(states.hidden, lengths, prompt),
            (None, None) => Pooling::mean().forward(states.hidden, lengths, prompt),
        };
        let kept = match (scaling, self.after.last()) {
            (Scaling::Unscaled, Some(Module::Normalize)) => self.after.len() - 1,
            _ => self.after.len(),
        };
        let vectors = self.after[..kept].iter().fold(pooled, |vectors, module| match module {
            Module::Dense(dense) => dense.forward(vectors),
            Module::Normalize => unit_length(vectors),
        });
        match scaling {
            Scaling::Saved if self.origin == Origin::ModulesJson => vectors,
            Scaling::Saved | Scaling::Unit => unit_length(vectors),
            Scaling::Unscaled => vectors,
        }
    }
}

impl<B: Backend> Modules<B> {
    /// How the vectors are made, and who says so. `own` is what the class makes itself.
    pub fn describe(&self, own: Option<String>) -> String {
        let Some(pooling) = &self.pooling else {
            return own.map_or(Pooling::mean().describe(), |own| format!("{own}, as the class of the model says"));
        };
        let source = match self.origin {
            Origin::ModulesJson => ", as modules.json says",
            Origin::Gguf => ", as the GGUF file says",
            Origin::Folder => "; there is no modules.json",
        };
        format!("{}{source}", pooling.describe())
    }
}

/// Checks the settings of a Normalize module, if it has any.
fn normalize(folder: &Path) -> Result<(), ConfigError> {
    let file = folder.join("config.json");
    if !file.exists() {
        return Ok(());
    }
    let record = burn_deepspeed::config::read_json(&file)?;
    let fields = Fields::new(&record)?;
    let keys = ["module_input_name", "module_output_name"];
    fields.check_keys(&keys, "a Normalize module")?;
    keys.into_iter().try_for_each(|key| match fields.text(&[key])? {
        Some(name) if name != "sentence_embedding" => Err(fields.unsupported(key, "\"sentence_embedding\"")),
        _ => Ok(()),
    })
}
