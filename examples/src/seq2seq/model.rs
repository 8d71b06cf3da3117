//! An encoder-decoder with its configuration and device, and the same without the backend in its type.

use std::path::Path;

use burn::tensor::backend::Backend;
use burn_deepspeed::load::{Checkpoint, ConfigOptions, EncoderDecoderConfig, LoadReport};
use burn_deepspeed::{AttentionInit, DataType, InferenceBackend};

use super::decoder::Decoder;
use super::encoder::{Encoded, Encoder};
use super::input::{Tables, ignore_shared};
use super::plan::StackPlan;
use super::{Seq2SeqSession, Session, Sources, features};
use crate::backend::BackendName;
use crate::layers::Loader;
use crate::{Failure, on_backend};

/// How a model is opened; [`default`](Self::default) takes everything from the checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Keys of `config.json` that the caller knows to change nothing. Default: none.
    pub allowed_keys: Vec<String>,
}

/// An encoder-decoder on some backend.
pub trait Seq2Seq {
    /// The configuration that it was opened with.
    fn config(&self) -> &EncoderDecoderConfig;

    /// Encodes sources. The session has an empty cache with room for `capacity` tokens in each row of the decoder, the prompt included.
    ///
    /// # Errors
    /// If the encoder does not take these sources, or the decoder has too few positions.
    fn session(&self, sources: &Sources, capacity: usize) -> Result<Box<dyn Seq2SeqSession + '_>, Failure>;
}

/// Opens a folder in the Hugging Face layout, in f32, on a backend of the build.
// Compiled with the programs that call it, so that a build of another program does not wait for it.
#[inline]
pub fn open(backend: BackendName, folder: &Path, options: &Options) -> Result<(Box<dyn Seq2Seq>, LoadReport), Failure> {
    fn boxed<B: InferenceBackend>(folder: &Path, options: &Options) -> Result<(Box<dyn Seq2Seq>, LoadReport), Failure> {
        let (model, report) = Model::<B>::open(folder, options, &B::Device::default())?;
        Ok((Box::new(model), report))
    }
    on_backend!(backend, boxed, folder, options)
}

/// An encoder-decoder, its configuration and its device.
#[derive(Debug)]
pub struct Model<B: Backend> {
    /// The configuration.
    pub config: EncoderDecoderConfig,
    pub(super) encoder: Encoder<B>,
    pub(super) decoder: Decoder<B>,
    /// Where it runs.
    pub device: B::Device,
}

impl<B: InferenceBackend> Model<B> {
    /// Reads a folder in the Hugging Face layout, in f32; the report says what was read.
    ///
    /// # Errors
    /// An error that names the file and what in it is not supported. Every tensor of the checkpoint must be used.
    pub fn open(folder: &Path, options: &Options, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        let reading = ConfigOptions::default().with_dtype(DataType::Fp32).with_allowed_keys(&options.allowed_keys);
        let file = folder.join("config.json");
        let config = EncoderDecoderConfig::read_file(&file, &reading)?;
        let [encoder, decoder] = StackPlan::both(&config).map_err(|error| error.in_file(&file))?;
        let checkpoint = Checkpoint::open(folder)?;
        config.check(&checkpoint)?;
        config.ignore_unused(&checkpoint);
        let prefix = config.prefix(&checkpoint).to_owned();
        let loader = Loader::new(decoder.attention(), &checkpoint, prefix, device)?;
        ignore_shared(&loader, &decoder);
        let mut tables = Tables::new();
        let encoder = Encoder::load(&loader, &encoder, &mut tables)?;
        let decoder = Decoder::load(&loader, &decoder, &mut tables)?;
        let report = checkpoint.finish()?;
        Ok((Self { config, encoder, decoder, device: device.clone() }, report))
    }

    /// The states of sources.
    fn encode(&self, sources: &Sources) -> Result<Encoded<B>, Failure> {
        match sources {
            Sources::Tokens(rows) => {
                Sources::check_tokens(rows, &self.config)?;
                Ok(self.encoder.encode_tokens(rows, &self.device)?)
            }
            Sources::Features(file) => {
                let shape = self.config.features.ok_or_else(|| {
                    format!("a {} reads tokens and no features of sound; give a text", self.config.family.name())
                })?;
                Ok(self.encoder.encode_features(features::read(file, shape, &self.device)?)?)
            }
        }
    }
}

impl<B: InferenceBackend> Seq2Seq for Model<B> {
    fn config(&self) -> &EncoderDecoderConfig {
        &self.config
    }

    fn session(&self, sources: &Sources, capacity: usize) -> Result<Box<dyn Seq2SeqSession + '_>, Failure> {
        if let Some(most) = self.config.decoder.positions.filter(|&most| capacity > most) {
            return Err(format!(
                "{capacity} tokens were asked for, those that the decoder starts with included, but it knows {most} positions; \
                 ask for fewer"
            )
            .into());
        }
        let contexts = self.decoder.contexts(self.encode(sources)?)?;
        let attention = self.config.decoder.attention.clone().with_max_out_tokens(capacity.max(1));
        let cache = attention.init_cache(contexts.batch(), &self.device)?;
        Ok(Box::new(Session { model: self, contexts, cache }))
    }
}
