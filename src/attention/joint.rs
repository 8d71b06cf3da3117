//! Joint attention of image and text tokens in diffusion transformers.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::connection::{Connection, require};
use super::projections::set_require_grad;
use crate::config::ActivationRounding;
use crate::element::element_type;
use crate::error::{AttentionError, ConfigError, WeightError, check_shape};
use crate::mask::AttentionMask;
use crate::ops::attention::Visibility;
use crate::ops::softmax_context::merge_heads;
use crate::ops::{Attention, ContextProblem, InferenceBackend, NormaliseAndRotate, Operations, Plan};
use crate::parallel::Communicator;
use crate::position::rotary::RotaryTable;
use crate::position::{PositionEncoding, Positions};
use crate::spec::AttentionSpec;
use crate::weight::{BlockFormat, Int8Blocks, QkvWeight, QueryKeyNorm, Weight};
use crate::zeros::zeros;

const NAME: &str = "DeepSpeedJointAttention";

/// Attention of two streams with weights of their own, joined into one sequence: the `attn` of Stable Diffusion 3
/// (<https://arxiv.org/abs/2403.03206>) and of Flux. DeepSpeed has none.
///
/// Image and text tokens are projected, and their queries and keys normalised, each with the weights of their stream. Joined, they
/// are rotated, and each attends to all. Then each stream has its own output projection, or none.
/// [`JointStreams`](crate::JointStreams) says which; with a single stream the module is `attn2` of Stable Diffusion 3.5, or the
/// attention of Flux's single blocks.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, JointStreams};
/// use burn_deepspeed::{Positions, QkNorm, QkNormKind, QkNormWeights, RotaryLayout, RotarySections, SectionOrder};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Default::default();
/// // a double block of Flux: `axes_dims_rope` [4, 6, 6]
/// let attention = DeepSpeedInferenceConfig::new(64, 4)
///     .with_dtype(DataType::Fp32)
///     .with_qk_norm(Some(QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, 1e-6)))
///     .with_rotary(RotaryLayout::Interleaved, 16)
///     .with_rope_sections(Some(RotarySections { pairs: [2, 3, 3], order: SectionOrder::Separate }))
///     .init_joint::<NdArray>(JointStreams::text_first(64), 0, &device)?;
/// // 3 tokens of text at position 0, an image of 2 × 2 patches; the table serves all layers and diffusion steps
/// let ids = [vec![0; 7], vec![0, 0, 0, 0, 0, 1, 1], vec![0, 0, 0, 0, 1, 0, 1]];
/// let table = attention.rotary_table(&Positions::from_axes(ids, [1, 7])?);
/// let (image, text) = (Tensor::ones([2, 4, 64], &device), Tensor::ones([2, 3, 64], &device));
/// let output = attention.forward(image, Some(text), table.as_ref(), AttentionMask::none())?;
/// assert_eq!(output.image.dims(), [2, 4, 64]);
/// assert_eq!(output.text.map(|text| text.dims()), Some([2, 3, 64]));
/// # Ok(()) }
/// ```
#[derive(Module, Debug)]
pub struct DeepSpeedJointAttention<B: Backend> {
    pub(crate) image: JointStream<B>,
    pub(crate) text: Option<JointStream<B>>,
    #[module(skip)]
    text_first: bool,
    #[module(skip)]
    spec: AttentionSpec,
    #[module(skip)]
    connection: Connection,
}

/// The weights of one stream.
#[derive(Module, Debug)]
pub struct JointStream<B: Backend> {
    pub(crate) qkv: QkvWeight<B>,
    pub(crate) query_key_norm: Option<QueryKeyNorm<B>>,
    pub(crate) output: Option<Weight<B>>,
}

/// What joint attention computes for each stream.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JointOutput<B: Backend> {
    /// Image tokens, or those of a single stream: `[B, T, E]`, or `[B, T, N·H]` of this rank's heads without an output projection.
    pub image: Tensor<B, 3>,
    /// Text tokens, `[B, text tokens, E]`; `None` if the text has no output projection, or there is no text.
    pub text: Option<Tensor<B, 3>>,
}

impl<B: Backend> JointStream<B> {
    /// The QKV projection, in the order `q | k | v`.
    pub fn qkv(&self) -> &QkvWeight<B> {
        &self.qkv
    }

    /// The weights of the norm of queries and keys.
    pub fn query_key_norm(&self) -> Option<&QueryKeyNorm<B>> {
        self.query_key_norm.as_ref()
    }

    /// The output projection.
    pub fn output(&self) -> Option<&Weight<B>> {
        self.output.as_ref()
    }

    fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let output = self.output.map(|output| output.quantize(blocks)).transpose()?;
        Ok(Self { qkv: self.qkv.quantize(blocks)?, output, ..self })
    }

    fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        let output = self.output.map(|output| output.quantize_blocks(format)).transpose()?;
        Ok(Self { qkv: self.qkv.quantize_blocks(format)?, output, ..self })
    }

    fn with_rounded_input(self, rounding: ActivationRounding) -> Self {
        let output = self.output.map(|output| output.with_rounded_input(rounding));
        Self { qkv: self.qkv.with_rounded_input(rounding), output, ..self }
    }
}

impl<B: Backend> DeepSpeedJointAttention<B> {
    pub(super) fn new(
        image: JointStream<B>,
        text: Option<JointStream<B>>,
        text_first: bool,
        spec: AttentionSpec,
    ) -> Self {
        Self { image, text, text_first, spec, connection: Connection::default() }
    }

    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        &self.spec
    }

    /// The weights of the image tokens, or of a single stream.
    pub fn image(&self) -> &JointStream<B> {
        &self.image
    }

    /// The weights of the text tokens.
    pub fn text(&self) -> Option<&JointStream<B>> {
        self.text.as_ref()
    }

    /// The same layer with other weights.
    pub(crate) fn with_streams(self, image: JointStream<B>, text: Option<JointStream<B>>) -> Self {
        Self { image, text, ..self }
    }

    /// See [`DeepSpeedSelfAttention::quantize`](crate::DeepSpeedSelfAttention::quantize).
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let text = self.text.map(|text| text.quantize(blocks)).transpose()?;
        Ok(Self { image: self.image.quantize(blocks)?, text, ..self })
    }

    /// See [`DeepSpeedSelfAttention::quantize_blocks`](crate::DeepSpeedSelfAttention::quantize_blocks).
    ///
    /// # Errors
    /// Those of [`BlockMatrix::quantize`](crate::weight::BlockMatrix::quantize).
    pub fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        let text = self.text.map(|text| text.quantize_blocks(format)).transpose()?;
        Ok(Self { image: self.image.quantize_blocks(format)?, text, ..self })
    }

    /// See [`DeepSpeedSelfAttention::with_rounded_activations`](crate::DeepSpeedSelfAttention::with_rounded_activations).
    pub fn with_rounded_activations(self, rounding: impl Into<ActivationRounding>) -> Self {
        let rounding = rounding.into();
        let text = self.text.map(|text| text.with_rounded_input(rounding));
        Self { image: self.image.with_rounded_input(rounding), text, ..self }
    }

    /// See [`DeepSpeedSelfAttention::with_communicator`](crate::DeepSpeedSelfAttention::with_communicator).
    ///
    /// # Errors
    /// [`ConfigError::OtherRank`] if the module holds the heads of another rank, or of a group of another size.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        Ok(Self { connection: Connection::new(communicator, &self.spec)?, ..self })
    }

    /// See [`DeepSpeedSelfAttention::with_training`](crate::DeepSpeedSelfAttention::with_training).
    pub fn with_training(self, training: bool) -> Self {
        set_require_grad(self, training)
    }

    /// Cosine and sine of the joint sequence at these positions, for all layers and diffusion steps. Angles are computed in f64.
    /// One row of positions serves every row of a batch. `None` if the layer does not rotate.
    ///
    /// # Panics
    /// If tokens have three positions and the layer no [sections](crate::RotarySections).
    pub fn rotary_table(&self, positions: &Positions) -> Option<RotaryTable<B>> {
        match &self.spec.position {
            PositionEncoding::Rotary(rotary) => {
                Some(RotaryTable::new(rotary, positions, &self.image.qkv.first().device()))
            }
            _ => None,
        }
    }
}

impl<B: InferenceBackend> DeepSpeedJointAttention<B> {
    /// Attends from every token to every token of both streams.
    ///
    /// # Shapes
    /// - image: `[B, T, E]`
    /// - text: `[B, text tokens, text features]`, if the layer has that stream
    /// - table: of the joint sequence, from [`rotary_table`](Self::rotary_table), if the layer rotates
    /// - mask: broadcasts to `[B, N, S, S]`, where S counts the joint sequence
    ///
    /// # Errors
    /// [`AttentionError::NoCommunicator`] on one of several ranks without a communicator; [`AttentionError::Communication`] if
    /// the sum over ranks fails; [`AttentionError::NoFastPath`] under `require_fast`.
    ///
    /// # Panics
    /// If a shape is wrong, or text or table are given to a layer without them, or not given to one with them.
    pub fn forward(
        &self,
        image: Tensor<B, 3>,
        text: Option<Tensor<B, 3>>,
        table: Option<&RotaryTable<B>>,
        mask: AttentionMask<B>,
    ) -> Result<JointOutput<B>, AttentionError> {
        self.check(&image, text.as_ref(), table);
        let ([batch, patches, _], device, dtype) = (image.dims(), image.device(), image.dtype());
        let words = text.as_ref().map_or(0, |text| text.dims()[1]);
        mask.check(NAME, [batch, self.spec.heads(), patches + words, patches + words]);
        require("masked_attention", &self.spec, || self.explain(patches + words))?;
        self.connection.check(&self.spec)?;

        let mut streams = vec![(&self.image, image)];
        streams.extend(self.text.as_ref().zip(text));
        if self.text_first {
            streams.reverse();
        }
        let image_at = if self.text_first { words } else { 0 };
        let context = self.attend(streams, table, mask);
        let of = |start: usize, tokens: usize| match &context {
            Some(context) if tokens > 0 => context.clone().narrow(1, start, tokens),
            _ => zeros([batch, tokens, self.spec.query_width()], (&device, dtype)),
        };
        let project = |context, output: &Weight<B>| self.connection.project(context, output, &self.spec, true);
        let image = of(image_at, patches);
        let image = match &self.image.output {
            Some(output) => project(image, output)?,
            None => image,
        };
        let text_output = self.text.as_ref().and_then(|text| text.output.as_ref());
        let text_at = if self.text_first { 0 } else { patches };
        Ok(JointOutput { image, text: text_output.map(|output| project(of(text_at, words), output)).transpose()? })
    }

    /// The path that attention of `tokens` tokens, those of both streams, takes, and the reason if it is the reference.
    pub fn explain(&self, tokens: usize) -> Plan {
        let weight = self.image.qkv.first();
        let problem = ContextProblem::new(element_type(weight.dtype()), tokens, self.spec.head_dim, None);
        B::Ops::plan_masked_attention(&problem, &weight.device())
    }

    #[track_caller]
    fn check(&self, image: &Tensor<B, 3>, text: Option<&Tensor<B, 3>>, table: Option<&RotaryTable<B>>) {
        let [batch, patches, _] = image.dims();
        check_shape(NAME, "image", &[batch, patches, self.spec.hidden_size], &image.dims());
        let words = match (&self.text, text) {
            (Some(stream), Some(text)) => {
                let words = text.dims()[1];
                check_shape(NAME, "text", &[batch, words, stream.qkv.first().input_size()], &text.dims());
                words
            }
            (None, None) => 0,
            (Some(_), None) => panic!("{NAME}: `text` is None, and the layer has a stream of text"),
            (None, Some(_)) => panic!("{NAME}: `text` is given, and the layer has a single stream"),
        };
        match (&self.spec.position, table) {
            (PositionEncoding::Rotary(rotary), Some(table)) => {
                let rows = if table.cos.dims()[0] == 1 { 1 } else { batch };
                check_shape(NAME, "table", &[rows, 1, patches + words, rotary.dim / 2], &table.cos.dims());
            }
            (PositionEncoding::Rotary(_), None) => panic!("{NAME}: `table` is None, and the layer rotates"),
            (_, Some(_)) => panic!("{NAME}: `table` is given, and the layer does not rotate"),
            (_, None) => {}
        }
    }

    /// The context of the joint sequence, `[B, S, N·H]`; `None` without tokens.
    fn attend(
        &self,
        streams: Vec<(&JointStream<B>, Tensor<B, 3>)>,
        table: Option<&RotaryTable<B>>,
        mask: AttentionMask<B>,
    ) -> Option<Tensor<B, 3>> {
        let mut start = 0;
        let mut parts = [const { Vec::new() }; 3];
        for (stream, tokens) in streams {
            let [batch, count, _] = tokens.dims();
            if batch * count == 0 {
                continue;
            }
            let heads = B::Ops::normalise_and_rotate(NormaliseAndRotate {
                qkv: B::Ops::qkv_gemm(tokens, None, &stream.qkv, false).qkv,
                norm: stream.query_key_norm.as_ref(),
                table: table.map(|table| table.narrow(start, count)),
                spec: &self.spec,
            });
            start += count;
            parts.iter_mut().zip(heads).for_each(|(part, heads)| part.push(heads));
        }
        if start == 0 {
            return None;
        }
        let [query, key, value] = parts.map(joined);
        let AttentionSpec { scale, softcap, .. } = self.spec;
        let (sinks, slopes) = (None, None);
        let visibility = Visibility::full(start);
        let attention = Attention { query, key, value, scale, softcap, sinks, slopes, visibility, mask };
        Some(merge_heads(B::Ops::masked_attention(attention)))
    }
}

/// The heads of several streams, one after the other.
fn joined<B: Backend>(mut parts: Vec<Tensor<B, 4>>) -> Tensor<B, 4> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 2),
    }
}
