//! A decoder with its configuration and device, and the same without the backend in its type.

use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::record::{FullPrecisionSettings, NamedMpkFileRecorder};
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_deepspeed::config::{ActivationRounding, MatrixFormat};
use burn_deepspeed::load::{ConfigOptions, HuggingFaceConfig, LoadReport};
use burn_deepspeed::parallel::Communicator;
use burn_deepspeed::spec::AttentionSpec;
use burn_deepspeed::weight::Int8Blocks;
use burn_deepspeed::{ConfigError, DataType, DeepSpeedInferenceConfig, InferenceBackend, KvCache, KvCacheType};

use super::{Batch, Session, TextSession};
use crate::backend::BackendName;
use crate::decoder::Decoder;
use crate::{Failure, ModelFiles, on_backend};

/// How a model is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Element type of weights and activations. Default: fp32.
    pub dtype: DataType,
    /// How matrices and embeddings are kept. Default: as `dtype` says.
    pub matrices: MatrixFormat,
    /// Whether the inputs of projections are rounded. Default: never.
    pub rounding: ActivationRounding,
    /// Element types of cached keys and values. Default: that of the activations.
    pub kv_cache: KvCacheType,
    /// The rank that this model is one part of. Default: `None`, the whole model.
    pub rank: Option<Arc<dyn Communicator>>,
    /// Whether ranks may hold different numbers of heads. Default: false.
    pub uneven_heads: bool,
    /// Keys of `config.json` that the caller knows to change nothing. Default: none.
    pub allowed_keys: Vec<String>,
    /// Whether the language model of a model that also reads images is opened alone. Default: false.
    pub text_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dtype: DataType::Fp32,
            matrices: MatrixFormat::OfDtype,
            rounding: ActivationRounding::Never,
            kv_cache: KvCacheType::default(),
            rank: None,
            uneven_heads: false,
            allowed_keys: Vec::new(),
            text_only: false,
        }
    }
}

impl Options {
    /// The settings of attention under these options.
    fn applied_to(&self, attention: DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig {
        let attention = attention.with_kv_cache_dtype(self.kv_cache).with_uneven_heads(self.uneven_heads);
        let attention = attention.with_matrix_format(self.matrices).with_round_activations(self.rounding);
        match &self.rank {
            Some(communicator) => attention.for_rank_of(&**communicator),
            None => attention,
        }
    }
}

/// A language model on some backend.
pub trait TextModel {
    /// The configuration that it was opened with.
    fn config(&self) -> &HuggingFaceConfig;

    /// An empty cache with room for the prompts and `new_tokens` more.
    ///
    /// # Errors
    /// If the model has too few positions, or an id of the prompts is not in its vocabulary.
    fn session(&self, batch: &Batch, new_tokens: usize) -> Result<Box<dyn TextSession + '_>, Failure>;

    /// The same model with projections in int8, if `weights` says so, one scale for each output, and this type of cache.
    fn in_int8(&self, weights: bool, cache: KvCacheType) -> Result<Box<dyn TextModel>, Failure>;

    /// Writes a Burn record to `path`, which gets the extension `mpk`.
    fn save(&self, path: &Path) -> Result<(), Failure>;

    /// The same model with the weights of a record that [`save`](Self::save) wrote to `path`.
    fn with_record(&self, path: &Path) -> Result<Box<dyn TextModel>, Failure>;

    /// Bytes of all parameters.
    fn parameter_bytes(&self) -> usize;

    /// Bytes of the cache of one row.
    fn cache_bytes(&self) -> Result<usize, Failure>;
}

/// Opens a folder in the Hugging Face layout, or a GGUF file, on a backend of the build.
pub fn open(
    backend: BackendName,
    files: &ModelFiles,
    options: &Options,
) -> Result<(Box<dyn TextModel>, LoadReport), Failure> {
    fn boxed<B: InferenceBackend>(
        files: &ModelFiles,
        options: &Options,
    ) -> Result<(Box<dyn TextModel>, LoadReport), Failure> {
        let (model, report) = Model::<B>::of(files, options, &B::Device::default())?;
        Ok((Box::new(model), report))
    }
    on_backend!(backend, boxed, files, options)
}

/// A decoder, its configuration and its device.
#[derive(Debug, Clone)]
pub struct Model<B: Backend> {
    /// The configuration.
    pub config: HuggingFaceConfig,
    /// The model itself.
    pub decoder: Decoder<B>,
    /// Where it runs.
    pub device: B::Device,
    rank: Option<Arc<dyn Communicator>>,
}

impl<B: InferenceBackend> Model<B> {
    /// Reads a folder in the Hugging Face layout, or a GGUF file; the report says what was read.
    pub fn open(path: &Path, options: &Options, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        Self::of(&ModelFiles::open(path)?, options, device)
    }

    /// The same for files that were opened.
    pub fn of(files: &ModelFiles, options: &Options, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        let reading = ConfigOptions::default().with_dtype(options.dtype).with_allowed_keys(&options.allowed_keys);
        let reading = reading.with_text_only(options.text_only);
        let config = files.config(&reading)?.with_attention(|attention| options.applied_to(attention));
        let checkpoint = files.checkpoint()?;
        config.check(&checkpoint)?;
        let decoder = Decoder::init(&config, device).map_err(|error| error.in_file(&files.config_path()))?;
        let (decoder, report) = decoder.load(&config, &checkpoint, device)?;
        let rank = options.rank.clone();
        Ok((Self { config, decoder: on_rank(decoder, rank.as_ref())?, device: device.clone(), rank }, report))
    }
}

impl<B: InferenceBackend> TextModel for Model<B> {
    fn config(&self) -> &HuggingFaceConfig {
        &self.config
    }

    fn session(&self, batch: &Batch, new_tokens: usize) -> Result<Box<dyn TextSession + '_>, Failure> {
        Ok(Box::new(Session::new(self, batch, new_tokens)?))
    }

    fn in_int8(&self, weights: bool, cache: KvCacheType) -> Result<Box<dyn TextModel>, Failure> {
        let decoder = self.decoder.clone().with_kv_cache_dtype(cache);
        Ok(Box::new(Self {
            config: self.config.clone().with_attention(|attention| attention.with_kv_cache_dtype(cache)),
            decoder: if weights { decoder.quantize(Int8Blocks::PerOutput)? } else { decoder },
            ..self.clone()
        }))
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        Ok(self.decoder.clone().save_file(path, &recorder())?)
    }

    fn with_record(&self, path: &Path) -> Result<Box<dyn TextModel>, Failure> {
        // Built anew, so that every weight is the record's.
        let fresh = Decoder::init(&self.config, &self.device)?;
        let fresh = match self.decoder.is_int8() && !fresh.is_int8() {
            true => fresh.quantize(Int8Blocks::PerOutput)?,
            false => fresh,
        };
        let decoder = on_rank(fresh.load_file(path, &recorder(), &self.device)?, self.rank.as_ref())?;
        Ok(Box::new(Self { decoder, ..self.clone() }))
    }

    fn parameter_bytes(&self) -> usize {
        let mut bytes = Bytes(0);
        self.decoder.visit(&mut bytes);
        bytes.0
    }

    fn cache_bytes(&self) -> Result<usize, Failure> {
        Ok(KvCache::<B>::bytes_for_layers(&specs(&self.config)?, 1, &self.device)?)
    }
}

/// The attention of every layer.
pub(super) fn specs(config: &HuggingFaceConfig) -> Result<Vec<AttentionSpec>, ConfigError> {
    (0..config.layers).map(|layer| config.attention_spec(layer)).collect()
}

/// The decoder of a rank, or the whole one.
fn on_rank<B: Backend>(decoder: Decoder<B>, rank: Option<&Arc<dyn Communicator>>) -> Result<Decoder<B>, ConfigError> {
    match rank {
        Some(communicator) => decoder.with_communicator(communicator),
        None => Ok(decoder),
    }
}

fn recorder() -> NamedMpkFileRecorder<FullPrecisionSettings> {
    NamedMpkFileRecorder::default()
}

/// Adds up the bytes of the parameters that it visits.
struct Bytes(usize);

impl<B: Backend> ModuleVisitor<B> for Bytes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0 += param.shape().num_elements() * param.val().dtype().size();
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        self.0 += param.shape().num_elements() * param.val().dtype().size();
    }
}
