//! Where an encoder keeps everything around attention, and how its blocks are built.

use super::class::Setting;
use super::decoder::Gate;
use super::flag::Flag;
use crate::error::ConfigError;
use crate::fields::Fields;

/// Where an encoder keeps everything around attention, and how its blocks are built. Paths of a layer are relative to it, the others
/// to the bare model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncoderPaths {
    /// What becomes the input of the first layer.
    pub input: EncoderInput,
    /// The norm of that input.
    pub input_norm: Option<&'static str>,
    /// The norms of a layer, without one before attention.
    pub norms: BlockNorms,
    /// The gate of a gated MLP.
    pub gate: Gate,
    /// The projection to the inner features of the MLP, in a layer.
    pub up: &'static str,
    /// The projection back, in a layer.
    pub down: &'static str,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: Flag,
    /// The norm after the last layer.
    pub final_norm: Option<&'static str>,
    /// How the class makes one vector of a row.
    pub pooling: ClassPooling,
    /// The projection of that vector, for classes that may have one.
    pub projection: Option<VectorProjection>,
    /// Beginnings of the names of tensors in the bare model that are not needed for the states and the vector.
    pub unused: &'static [&'static str],
    /// The same outside of the bare model: heads for training and classification.
    pub heads: &'static [&'static str],
}

/// The input of an encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EncoderInput {
    /// Tokens of a text.
    Tokens(TokenPaths),
    /// Patches of an image.
    Patches(PatchPaths),
}

/// Where the embeddings of tokens are. The table of positions is that of the [`Family`](super::families::Family).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenPaths {
    /// The token embedding.
    pub words: &'static str,
    /// The embedding of segments, `type_vocab_size` of them, for classes that have one. A single text is the first segment.
    pub segments: Option<&'static str>,
    /// Which rows of the table of positions the tokens of a row have.
    pub position_ids: PositionIds,
}

/// Which rows of the table of positions the tokens of a row have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionIds {
    /// Their slots, those of padding included, from 0.
    Slots,
    /// The tokens that are not `pad_token_id` count from the row after that id. Every token with that id has its row. The number is the
    /// id if it is absent.
    AfterPadding(usize),
}

/// Where the embedding of an image is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PatchPaths {
    /// The projection of a patch, a convolution whose stride is its size.
    pub projection: &'static str,
    /// Whether it has a bias.
    pub bias: bool,
    /// The tensor of the token before the patches, for classes that have one.
    pub class_token: Option<&'static str>,
    /// The tensor of positions, one for each token.
    pub positions: &'static str,
    /// Height and width of an image, if absent.
    pub image_size: usize,
    /// Height and width of a patch, if absent.
    pub patch_size: usize,
    /// Whether the class takes a pair for each, height and width.
    pub pairs: bool,
}

/// The norms of a layer, without one before attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockNorms {
    /// Of the sum of the input with attention, and of the sum with the MLP.
    After {
        /// Of the sum with attention.
        attention: &'static str,
        /// Of the sum with the MLP.
        mlp: &'static str,
    },
    /// Before the MLP.
    Before {
        /// Its path.
        mlp: &'static str,
    },
}

/// How a class makes one vector of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassPooling {
    /// It does not, or only for a head.
    None,
    /// The state of the first token that is `eos_token_id`; if that is 2, of the first with the largest id. The number is the id if it
    /// is absent.
    EndToken(usize),
    /// A projection of the state of the last token, which may be padding. Texts are padded to the longest that the model takes.
    LastToken {
        /// The projection, with a bias.
        projection: &'static str,
        /// Key of its outputs; the hidden size if it is absent.
        size: &'static str,
        /// The token of padding, if `pad_token_id` is absent and the tokenizer names none.
        padding: usize,
    },
    /// The state of the first token.
    FirstToken {
        /// A norm of it.
        norm: Option<&'static str>,
        /// A projection with a bias and the activation `pooler_act`, if the checkpoint has it. Its outputs are `pooler_output_size`.
        pooler: Option<&'static str>,
    },
    /// Attention of one learned query to all states, and an MLP, below this path.
    Probe(&'static str),
}

/// The projection of the vector of a class, without a bias and outside of the bare model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VectorProjection {
    /// Its path.
    pub path: &'static str,
    /// Its outputs.
    pub size: Setting<usize>,
}

/// The images that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    /// Channels of a pixel.
    pub channels: usize,
    /// Height and width, in pixels.
    pub size: [usize; 2],
    /// Height and width of a patch, in pixels. What is left of an image on the right and at the bottom is not read.
    pub patch: [usize; 2],
}

/// Key of the token of padding.
const PADDING: &str = "pad_token_id";

impl ImageShape {
    /// Whole patches from top to bottom and from left to right.
    pub fn grid(&self) -> [usize; 2] {
        [0, 1].map(|axis| self.size[axis] / self.patch[axis])
    }
}

impl PatchPaths {
    /// The images that the model takes.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`]; [`ConfigError::Unsupported`] for an image without a whole patch.
    pub fn image(&self, fields: &Fields<'_>) -> Result<ImageShape, ConfigError> {
        let size = |key: &str, default: usize| match self.pairs {
            false => fields.positive(&[key]).map(|size| [size.unwrap_or(default); 2]),
            true => match fields.sizes(key)?.as_slice() {
                [] if fields.value(key).is_none() => Ok([default; 2]),
                [size] if *size > 0 => Ok([*size; 2]),
                [height, width] if *height > 0 && *width > 0 => Ok([*height, *width]),
                _ => Err(fields.unsupported(key, "one number of at least 1, or a height and a width")),
            },
        };
        let channels = fields.positive(&["num_channels"])?.unwrap_or(3);
        let (size, patch) = (size("image_size", self.image_size)?, size("patch_size", self.patch_size)?);
        match patch[0] <= size[0] && patch[1] <= size[1] {
            true => Ok(ImageShape { channels, size, patch }),
            false => Err(fields.unsupported("patch_size", "at most `image_size`, in height and in width")),
        }
    }
}

impl EncoderPaths {
    /// What an encoder has unless its family says otherwise: an MLP with biases and without a gate. A record names its paths and takes
    /// the rest from here.
    pub(super) const SHARED: Self = Self {
        input: EncoderInput::Tokens(TokenPaths { words: "", segments: None, position_ids: PositionIds::Slots }),
        input_norm: None,
        norms: BlockNorms::Before { mlp: "" },
        gate: Gate::None,
        up: "",
        down: "",
        mlp_bias: Flag::Fixed(true),
        final_norm: None,
        pooling: ClassPooling::None,
        projection: None,
        unused: &[],
        heads: &[],
    };

    /// The embedding of segments and their number; `None` for a class that has none.
    ///
    /// # Errors
    /// Those of [`Fields::positive`].
    pub fn segments(&self, fields: &Fields<'_>) -> Result<Option<(&'static str, usize)>, ConfigError> {
        let EncoderInput::Tokens(TokenPaths { segments: Some(path), .. }) = self.input else { return Ok(None) };
        Ok(Some((path, fields.positive(&["type_vocab_size"])?.unwrap_or(2))))
    }

    /// The token of padding from which positions count, for a class where they do.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`]; [`ConfigError::Unsupported`] for `null`, with which the class fails.
    pub fn padding_before_positions(&self, fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
        match self.input {
            EncoderInput::Tokens(TokenPaths { position_ids: PositionIds::AfterPadding(default), .. }) => {
                if fields.is_null(PADDING) {
                    return Err(fields.unsupported(PADDING, "the id of a token, from which positions count"));
                }
                Ok(Some(fields.size(&[PADDING])?.unwrap_or(default)))
            }
            _ => Ok(None),
        }
    }

    /// The token with which every text is padded to the longest that the model takes, for a class where padding matters.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`].
    pub fn padding_to_longest(&self, fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
        match self.pooling {
            ClassPooling::LastToken { padding, .. } => Ok(Some(fields.size(&[PADDING])?.unwrap_or(padding))),
            _ => Ok(None),
        }
    }

    /// The token whose state is the vector of a text, for a class that looks for one.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`]; [`ConfigError::Unsupported`] for `null` and for several.
    pub fn end_token(&self, fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
        const KEY: &str = "eos_token_id";
        let ClassPooling::EndToken(default) = self.pooling else { return Ok(None) };
        match (fields.sizes(KEY)?.as_slice(), fields.value(KEY)) {
            ([], None) if !fields.is_null(KEY) => Ok(Some(default)),
            ([id], Some(value)) if !value.is_array() => Ok(Some(*id)),
            _ => Err(fields.unsupported(KEY, "the id of one token, whose state is the vector of a text")),
        }
    }

    /// Outputs of the projection that belongs to the pooling: `hidden` where the class says no other number.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`].
    pub fn pooled_size(&self, fields: &Fields<'_>, hidden: usize) -> Result<usize, ConfigError> {
        let stated = self.pooled_size_key().map_or(Ok(None), |key| fields.size(&[key]))?;
        Ok(stated.filter(|&size| size > 0).unwrap_or(hidden))
    }

    fn pooled_size_key(&self) -> Option<&'static str> {
        match self.pooling {
            ClassPooling::LastToken { size, .. } => Some(size),
            ClassPooling::FirstToken { pooler: Some(_), .. } => Some("pooler_output_size"),
            _ => None,
        }
    }

    /// The keys that are read.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        let input: &[&str] = match self.input {
            EncoderInput::Patches(_) => &["image_size", "num_channels", "patch_size"],
            EncoderInput::Tokens(TokenPaths { segments: Some(_), .. }) => &["type_vocab_size"],
            EncoderInput::Tokens(_) => &[],
        };
        let pooler: &[&str] = match (self.pooling, self.input) {
            (ClassPooling::FirstToken { pooler: Some(_), .. }, _) => &["pooler_act"],
            (ClassPooling::LastToken { .. }, _)
            | (_, EncoderInput::Tokens(TokenPaths { position_ids: PositionIds::AfterPadding(_), .. })) => &[PADDING],
            _ => &[],
        };
        let projection = self.projection.iter().flat_map(|projection| projection.size.names);
        let flag = self.mlp_bias.key();
        input.iter().chain(pooler).chain(projection).copied().chain(self.pooled_size_key()).chain(flag)
    }

    /// Checks the values of the keys that are read.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`] or [`ConfigError::Unsupported`].
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        self.mlp_bias.of(fields)?;
        self.segments(fields)?;
        self.padding_before_positions(fields)?;
        self.padding_to_longest(fields)?;
        if let EncoderInput::Patches(paths) = self.input {
            paths.image(fields)?;
        }
        self.end_token(fields)?;
        self.pooled_size(fields, 1)?;
        if let ClassPooling::FirstToken { pooler: Some(_), .. } = self.pooling {
            fields.text(&["pooler_act"])?;
        }
        self.projection.map_or(Ok(None), |projection| fields.positive(projection.size.names)).map(|_| ())
    }
}
