//! How an encoder is built: what its `config.json` says, checked before a weight is read.

use burn_deepspeed::ConfigError;
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::load::families::{ClassPooling, EncoderInput, EncoderPaths, ImageShape, PatchPaths, TokenPaths};

use crate::decoder::activation::Activation;
use crate::layers::MlpPlan;

/// How an encoder is built.
pub struct Plan<'a> {
    pub config: &'a HuggingFaceConfig,
    pub paths: &'static EncoderPaths,
    pub input: InputPlan,
    /// Width of the states.
    pub hidden: usize,
    pub mlp: MlpPlan,
    /// The token whose state is the vector.
    pub end: Option<usize>,
    /// Outputs of the projection that belongs to the pooling.
    pub pooled_size: usize,
    /// The activation of a pooler.
    pub pooler: Activation,
}

/// What the encoder takes.
pub enum InputPlan {
    Tokens {
        paths: TokenPaths,
        /// Path and number of the embeddings of segments.
        segments: Option<(&'static str, usize)>,
        /// The token of padding from which positions count.
        padding: Option<usize>,
    },
    Patches {
        paths: PatchPaths,
        shape: ImageShape,
    },
}

impl<'a> Plan<'a> {
    /// Reads everything that the encoder needs from the configuration.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key.
    pub fn of(config: &'a HuggingFaceConfig) -> Result<Self, ConfigError> {
        let fields = config.fields()?;
        let paths = config.encoder().ok_or_else(|| {
            fields.unsupported("model_type", "an encoder, such as bert, roberta or clip; `generate` runs the decoders")
        })?;
        if config.learned_positions() == Some(0) {
            let rows = config.max_positions.unwrap_or(0);
            let supported = format!("a token before the last of the {rows} rows of positions, which count from it");
            return Err(fields.unsupported("pad_token_id", &supported));
        }
        let hidden = config.attention_config(0).hidden_size;
        let pooler = match paths.pooling {
            ClassPooling::FirstToken { pooler: Some(_), .. } => fields.text(&["pooler_act"])?.unwrap_or("tanh"),
            _ => "tanh",
        };
        let input = match paths.input {
            EncoderInput::Tokens(tokens) => InputPlan::Tokens {
                paths: tokens,
                segments: paths.segments(&fields)?,
                padding: paths.padding_before_positions(&fields)?,
            },
            EncoderInput::Patches(patches) => InputPlan::Patches { paths: patches, shape: patches.image(&fields)? },
        };
        Ok(Self {
            config,
            paths,
            input,
            hidden,
            mlp: MlpPlan {
                gate: paths.gate,
                up: paths.up,
                down: paths.down,
                bias: paths.mlp_bias.of(&fields)?,
                inner: config.mlp_size,
                activation: Activation::of(config)?,
            },
            end: paths.end_token(&fields)?,
            pooled_size: paths.pooled_size(&fields, hidden)?,
            pooler: Activation::named(pooler, "pooler_act")?,
        })
    }

    /// The images that the encoder takes; `None` for an encoder of texts.
    pub fn image(&self) -> Option<ImageShape> {
        match self.input {
            InputPlan::Patches { shape, .. } => Some(shape),
            InputPlan::Tokens { .. } => None,
        }
    }

    /// Most tokens of a row.
    pub fn longest(&self) -> usize {
        self.config.learned_positions().or(self.config.max_positions).unwrap_or(usize::MAX)
    }
}
