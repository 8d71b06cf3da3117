//! Where a decoder keeps everything around attention, and how its blocks are built.

use super::experts::Experts;
use super::flag::Flag;
use super::only::Only;
use crate::error::ConfigError;
use crate::fields::Fields;

/// Where a decoder keeps everything around attention, and how its blocks are built. Paths of a layer are relative to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecoderPaths {
    /// The token embedding, in the bare model.
    pub tokens: &'static str,
    /// The norm of the embedding, in the bare model.
    pub embedding_norm: Option<&'static str>,
    /// Factor of the embedding.
    pub embedding_factor: Factor,
    /// The norm after the last layer, in the bare model.
    pub final_norm: &'static str,
    /// The output embedding, of which `tie_word_embeddings` may make the input embedding. It is outside the bare model.
    pub head: &'static str,
    /// Whether the output embedding has a bias.
    pub head_bias: bool,
    /// Factor of the logits.
    pub logit_factor: Factor,
    /// Key of the softcap of the logits, `c · tanh(logit / c)`, and its value if the key is absent. `null` is none.
    pub logit_softcap: Option<(&'static str, Option<f64>)>,
    /// The norm of the output of attention, before the sum, in a layer.
    pub attention_output_norm: Option<&'static str>,
    /// Factor of the outputs of attention and of the MLP, before the sum.
    pub residual_factor: Factor,
    /// The norm before the MLP, in a layer. `None` if the MLP reads what attention's norm wrote, or its input as it is if attention
    /// has no norm.
    pub mlp_norm: Option<&'static str>,
    /// The norm of the output of the MLP, before the sum, in a layer.
    pub mlp_output_norm: Option<&'static str>,
    /// The gate of a gated MLP.
    pub gate: Gate,
    /// The projection to the inner features of the MLP, in a layer.
    pub up: &'static str,
    /// The projection back, in a layer.
    pub down: &'static str,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: Flag,
    /// The experts that some layers have in place of this MLP.
    pub experts: Option<Experts>,
    /// How many times as wide the MLP is in layers that read the keys of another layer.
    pub shared_mlp_widths: usize,
    /// The embeddings of tokens that each layer adds to its output.
    pub layer_inputs: Option<LayerInputPaths>,
    /// The factor of the output of a layer, a tensor of one element, in a layer.
    pub layer_factor: Option<&'static str>,
    /// Whether the MLP reads the input of the block instead of its sum with attention.
    pub parallel: Flag,
    /// Keys that a decoder built from these paths supports with one value only.
    pub only: &'static [Only],
}

impl DecoderPaths {
    /// What a decoder has unless its family says otherwise: an output embedding `lm_head` without a bias, and an MLP with biases
    /// and without a gate, after attention. A record names its paths and takes the rest from here.
    pub(super) const SHARED: Self = Self {
        tokens: "",
        embedding_norm: None,
        embedding_factor: Factor::One,
        final_norm: "",
        head: "lm_head",
        head_bias: false,
        logit_factor: Factor::One,
        logit_softcap: None,
        attention_output_norm: None,
        residual_factor: Factor::One,
        mlp_norm: None,
        mlp_output_norm: None,
        gate: Gate::None,
        up: "",
        down: "",
        mlp_bias: Flag::Fixed(true),
        experts: None,
        shared_mlp_widths: 1,
        layer_inputs: None,
        layer_factor: None,
        parallel: Flag::Fixed(false),
        only: &[],
    };
}

/// Where a decoder keeps the embeddings of tokens for each layer. A layer adds `norm(output(act(gate(x)) · input))` to its output `x`, where
/// `input` is the mean of the embedding and of a normalised projection of the token embedding, times √2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInputPaths {
    /// Features of a token for one layer.
    pub size: usize,
    /// Rows of the table.
    pub rows: usize,
    /// The table, in the bare model: the features of all layers in each row.
    pub tokens: &'static str,
    /// The projection of the token embedding, in the bare model.
    pub projection: &'static str,
    /// The norm of the projection, for each layer, in the bare model.
    pub norm: &'static str,
    /// The projection of the output to the features, in a layer.
    pub gate: &'static str,
    /// The projection back, in a layer.
    pub output: &'static str,
    /// The norm of what is added, in a layer.
    pub output_norm: &'static str,
}

/// The gate of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// The MLP has none.
    None,
    /// A projection at this path, in a layer.
    At(&'static str),
    /// The first half of the outputs of the projection to the inner features.
    WithUp,
}

/// A factor of a family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Factor {
    /// 1.
    One,
    /// The value of a key, and what it is if the key is absent.
    Key(&'static str, f64),
    /// 1 over the value of a key, and that value if the key is absent.
    Inverse(&'static str, f64),
    /// The root of the hidden size.
    RootOfHidden,
}

impl Factor {
    /// The factor in the model of this `config.json` and hidden size.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`]; [`ConfigError::Unsupported`] unless it is above 0.
    pub fn of(self, fields: &Fields<'_>, hidden: usize) -> Result<f64, ConfigError> {
        let value = |key, default| fields.above_zero(&[key]).map(|value| value.unwrap_or(default));
        match self {
            Self::One => Ok(1.0),
            Self::Key(key, default) => value(key, default),
            Self::Inverse(key, default) => Ok(1.0 / value(key, default)?),
            Self::RootOfHidden => Ok((hidden as f64).sqrt()),
        }
    }

    fn key(self) -> Option<&'static str> {
        match self {
            Self::Key(key, _) | Self::Inverse(key, _) => Some(key),
            Self::One | Self::RootOfHidden => None,
        }
    }
}

impl DecoderPaths {
    /// The softcap of the logits in the model of this `config.json`.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`]; [`ConfigError::Unsupported`] unless it is above 0.
    pub fn logit_softcap(&self, fields: &Fields<'_>) -> Result<Option<f64>, ConfigError> {
        self.logit_softcap.map_or(Ok(None), |(key, default)| fields.above_zero_or_null(key, default))
    }

    fn flags(&self) -> [Flag; 2] {
        [self.mlp_bias, self.parallel]
    }

    fn factors(&self) -> [Factor; 3] {
        [self.embedding_factor, self.residual_factor, self.logit_factor]
    }

    /// The keys that are read.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        let settings = self.flags().into_iter().filter_map(Flag::key);
        let factors = self.factors().into_iter().filter_map(Factor::key);
        let only = self.only.iter().map(|only| only.key);
        let experts = self.experts.into_iter().flat_map(|experts| experts.keys().collect::<Vec<_>>());
        settings.chain(experts).chain(factors).chain(self.logit_softcap.map(|(key, _)| key)).chain(only)
    }

    /// Checks the values of the keys that are read, without those of `only`.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`] or [`ConfigError::Unsupported`].
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        self.flags().into_iter().try_for_each(|flag| flag.of(fields).map(|_| ()))?;
        self.factors().into_iter().try_for_each(|factor| factor.of(fields, 1).map(|_| ()))?;
        self.experts.iter().try_for_each(|experts| experts.check(fields))?;
        self.logit_softcap(fields).map(|_| ())
    }
}
