//! The names under which a checkpoint keeps the parameters of one attention layer.

use super::files::Checkpoint;
use super::layout::QkvLayout;
use crate::layout::Orientation;

/// Where the parameters of one attention layer are in a checkpoint.
///
/// Biases are looked up if the module has them; a bias in the checkpoint that the module has no place for is an error. Scales
/// are looked up where the matrix is int8.
///
/// [`new`](Self::new) takes what every layer has; the methods `with_…` add the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttentionNames {
    /// The norm before the projection; read if the module has one.
    pub norm: Option<NormNames>,
    /// The norm of queries and keys; read if the module has one with weights.
    pub qk_norm: Option<QkNormNames>,
    /// The sinks, `[all N]`; read if the module has some.
    pub sinks: Option<String>,
    /// The QKV projection, and that of the gate if the module has one.
    pub qkv: QkvNames,
    /// The output projection.
    pub output: WeightNames,
    /// How the checkpoint stores its matrices.
    pub orientation: Orientation,
}

/// The names of a norm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormNames {
    /// Factor.
    pub gamma: String,
    /// Summand.
    pub beta: String,
    /// Whether the factor is `1 + gamma` (Gemma). 1 is added when it is read, and subtracted when it is written.
    pub plus_one: bool,
    /// Whether the norm has no weights (OLMo 1): the factor is 1, and no tensor holds it.
    pub unweighted: bool,
}

/// The names of the weights of the norm of queries and keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QkNormNames {
    /// Those of queries.
    pub query: HeadWeightNames,
    /// Those of keys.
    pub key: HeadWeightNames,
}

/// Where the weights of the heads of a norm are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadWeightNames {
    /// In one tensor: `[H]` if the heads share their weights, else `[heads, H]` (Cohere) or `[heads·H]` (OLMo).
    One(String),
    /// In a tensor `[H]` for each head of a file, counted from 0: StableLM's `q_layernorm.norms.0.weight`.
    Each {
        /// What comes before the number of the head.
        before: String,
        /// What comes after it.
        after: String,
    },
}

impl QkNormNames {
    /// `query.weight` and `key.weight`.
    pub fn of(query: &str, key: &str) -> Self {
        let [query, key] = [query, key].map(|path| HeadWeightNames::One(format!("{path}.weight")));
        Self { query, key }
    }

    /// `query.0.weight`, `query.1.weight` and so on, and the same for keys.
    pub fn of_each_head(query: &str, key: &str) -> Self {
        let each = |path| HeadWeightNames::Each { before: format!("{path}."), after: ".weight".into() };
        Self { query: each(query), key: each(key) }
    }
}

impl HeadWeightNames {
    /// The tensor that holds the weights of a head, counted in its file.
    pub fn of_head(&self, head: usize) -> String {
        match self {
            Self::One(name) => name.clone(),
            Self::Each { before, after } => format!("{before}{head}{after}"),
        }
    }
}

/// The names of a projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightNames {
    /// Matrix.
    pub matrix: String,
    /// Bias.
    pub bias: String,
    /// Scales, should the matrix be int8.
    pub scales: ScaleNames,
}

/// Where the scales of an int8 matrix are, and which weights each belongs to; DeepSpeed's `dequantize.cu`.
///
/// The matrix was merged along its inputs from 2^`merge_count` parts, `[out, in / 2^merge_count]` each. The elements of a part,
/// counted output by output, are divided into groups of equal length, one for each scale of the part. The scales of the first
/// group of every part come first, then those of the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleNames {
    /// The tensor, of a float type and any shape. DeepSpeed's `GroupQuantizer` writes `[groups, 3]`, of which the first
    /// `groups` numbers are the scales. The others are scales of the two halves of the matrix, and are not read. Where three
    /// columns may also be three scales for each output, the checkpoint must say its
    /// [`ScaleFormat`](super::ScaleFormat).
    pub tensor: String,
    /// Base-2 logarithm of the parts; DeepSpeed's `merge_count`, 0 for a matrix that was not merged.
    pub merge_count: u32,
}

impl ScaleNames {
    /// `matrix.scale`, for a matrix that was not merged: the attribute of DeepSpeed's parameters.
    pub fn of(matrix: &str) -> Self {
        Self { tensor: format!("{matrix}.scale"), merge_count: 0 }
    }
}

impl WeightNames {
    /// `path.weight`, `path.bias` and `path.weight.scale`.
    pub fn of(path: &str) -> Self {
        Self::new(format!("{path}.weight"), format!("{path}.bias"))
    }

    /// These names, with `matrix.scale` for the scales.
    pub fn new(matrix: String, bias: String) -> Self {
        Self { scales: ScaleNames::of(&matrix), matrix, bias }
    }
}

impl NormNames {
    /// `path.weight` and `path.bias`.
    pub fn of(path: &str) -> Self {
        Self::new(format!("{path}.weight"), format!("{path}.bias"))
    }

    /// A norm whose factor is stored as it is.
    pub fn new(gamma: String, beta: String) -> Self {
        Self { gamma, beta, plus_one: false, unweighted: false }
    }

    /// Sets whether the factor is `1 + gamma`.
    pub fn with_plus_one(self, plus_one: bool) -> Self {
        Self { plus_one, ..self }
    }

    /// Sets whether the norm has no weights.
    pub fn with_unweighted(self, unweighted: bool) -> Self {
        Self { unweighted, ..self }
    }
}

/// The names of a QKV projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QkvNames {
    /// One matrix.
    Fused {
        /// Its names.
        names: WeightNames,
        /// The order of its outputs.
        layout: QkvLayout,
    },
    /// A matrix and a bias for each.
    Separate {
        /// Queries.
        query: WeightNames,
        /// Keys.
        key: WeightNames,
        /// Values.
        value: WeightNames,
    },
    /// The same, where the query projection holds for each head its query and then its gate (Qwen3-Next, Qwen 3.5), `2·N·H` outputs.
    SeparateWithGate {
        /// Queries and gates.
        query: WeightNames,
        /// Keys.
        key: WeightNames,
        /// Values.
        value: WeightNames,
    },
    /// A matrix for each, with scales named as in [`ScaleNames::of`], and one bias `q | k | v`.
    SeparateWithFusedBias {
        /// Matrix of the queries.
        query: String,
        /// Matrix of the keys.
        key: String,
        /// Matrix of the values.
        value: String,
        /// The bias.
        bias: String,
    },
}

impl QkvNames {
    /// Three projections `path.q`, `path.k`, `path.v`, under these names.
    pub fn separate(path: &str, [query, key, value]: [&str; 3]) -> Self {
        let of = |name| WeightNames::of(&format!("{path}.{name}"));
        Self::Separate { query: of(query), key: of(key), value: of(value) }
    }

    /// Three projections `path.q`, `path.k`, `path.v`, the first with the gates.
    pub fn separate_with_gate(path: &str, [query, key, value]: [&str; 3]) -> Self {
        let of = |name| WeightNames::of(&format!("{path}.{name}"));
        Self::SeparateWithGate { query: of(query), key: of(key), value: of(value) }
    }

    /// One projection at `path`.
    pub fn fused(path: &str, layout: QkvLayout) -> Self {
        Self::Fused { names: WeightNames::of(path), layout }
    }
}

impl AttentionNames {
    /// A layer without norms of its own.
    pub fn new(qkv: QkvNames, output: WeightNames, orientation: Orientation) -> Self {
        Self { norm: None, qk_norm: None, sinks: None, qkv, output, orientation }
    }

    /// These names, with those of the norm before the projection.
    pub fn with_norm(self, norm: NormNames) -> Self {
        Self { norm: Some(norm), ..self }
    }

    /// These names, with those of the norm of queries and keys.
    pub fn with_qk_norm(self, qk_norm: QkNormNames) -> Self {
        Self { qk_norm: Some(qk_norm), ..self }
    }

    /// These names, with that of the sinks.
    pub fn with_sinks(self, sinks: impl Into<String>) -> Self {
        Self { sinks: Some(sinks.into()), ..self }
    }

    /// These names, with others for the QKV projection.
    pub fn with_qkv(self, qkv: QkvNames) -> Self {
        Self { qkv, ..self }
    }

    /// DeepSpeed's names: `attn_qkvw`, or `attn_qw`, `attn_kw` and `attn_vw` where the checkpoint has only those;
    /// `attn_ow`, `norm_w` and their biases. The norm is looked up next to the projections and in the block around them, where
    /// DeepSpeed keeps it (`h.0.norm_w` for `h.0.attention.attn_qkvw`). The scales of an int8 matrix are the tensor
    /// `attn_qkvw.scale` (and so on) of the checkpoint, since a file has no attributes.
    ///
    /// `layout` is that of `attn_qkvw`, which for BLOOM is [`QkvLayout::PerHead`]. `orientation` is
    /// [`Orientation::InputOutput`] for matrices that DeepSpeed injected, [`Orientation::OutputInput`] under its
    /// `transposed_mode` and `set_empty_params`, and for int8. Neither follows from shapes, so both must be stated.
    pub fn deepspeed(checkpoint: &Checkpoint, prefix: &str, layout: QkvLayout, orientation: Orientation) -> Self {
        let name = |stem: &str| format!("{prefix}{stem}");
        let weight = |stem: &str| WeightNames::new(name(&format!("attn_{stem}w")), name(&format!("attn_{stem}b")));
        let qkv = if checkpoint.contains(&name("attn_qkvw")) || !checkpoint.contains(&name("attn_qw")) {
            QkvNames::Fused { names: weight("qkv"), layout }
        } else if checkpoint.contains(&name("attn_qkvb")) {
            QkvNames::SeparateWithFusedBias {
                query: name("attn_qw"),
                key: name("attn_kw"),
                value: name("attn_vw"),
                bias: name("attn_qkvb"),
            }
        } else {
            QkvNames::Separate { query: weight("q"), key: weight("k"), value: weight("v") }
        };
        let block =
            prefix.trim_end_matches('.').rsplit_once('.').map_or(String::new(), |(block, _)| format!("{block}."));
        let adjacent = checkpoint.contains(&name("norm_w")) || !checkpoint.contains(&format!("{block}norm_w"));
        let norm = if adjacent { prefix } else { &block };
        let norm = NormNames::new(format!("{norm}norm_w"), format!("{norm}norm_b"));
        Self::new(qkv, weight("o"), orientation).with_norm(norm)
    }

    /// The same names for an int8 checkpoint that was merged from 2^`merge_count` partitions; DeepSpeed's `merge_count`. The
    /// output projection is cut along its inputs, so its scales alternate. QKV is cut along its outputs, so the scales of its
    /// partitions follow each other, as they do without merging.
    pub fn with_merge_count(mut self, merge_count: u32) -> Self {
        self.output.scales.merge_count = merge_count;
        self
    }

    /// The names of Megatron-LM for the layer at `layer`, such as `model.language_model.encoder.layers.0`: `query_key_value` and
    /// `dense` in `self_attention`, or in `attention` where the checkpoint has only that, after the norm `input_layernorm`. Where the
    /// checkpoint has `self_attention.linear_qkv` they are those of Megatron Core, whose norm may be part of that projection.
    ///
    /// `layout` does not follow from shapes. It is
    ///
    /// - [`QkvLayout::Concat`] for checkpoints of version 0, DeepSpeed's `megatron_v2` false;
    /// - [`QkvLayout::PerHead`] from version 2 on, `megatron_v2` true;
    /// - [`QkvLayout::PerGroup`] for grouped heads, and for Megatron Core.
    ///
    /// Version 1 alternates query, key and value by feature. Megatron-LM's own tools convert it to version 2.
    pub fn megatron(checkpoint: &Checkpoint, layer: &str, layout: QkvLayout) -> Self {
        let at = |path: &str| format!("{layer}.{path}");
        let has = |path: &str| checkpoint.contains(&at(path));
        let (qkv, output) = if has("self_attention.linear_qkv.weight") {
            ("self_attention.linear_qkv", "self_attention.linear_proj")
        } else if has("attention.query_key_value.weight") {
            ("attention.query_key_value", "attention.dense")
        } else {
            ("self_attention.query_key_value", "self_attention.dense")
        };
        let fused_norm = format!("{qkv}.layer_norm_weight");
        let norm = match has(&fused_norm) {
            true => NormNames::new(at(&fused_norm), at(&format!("{qkv}.layer_norm_bias"))),
            false => NormNames::of(&at("input_layernorm")),
        };
        let output = WeightNames::of(&at(output));
        Self::new(QkvNames::fused(&at(qkv), layout), output, Orientation::OutputInput).with_norm(norm)
    }

    /// The names of an attention block of the `diffusers` library at `path`: `to_q`, `to_k`, `to_v`, `to_out.0`.
    pub fn diffusers(path: &str) -> Self {
        let qkv = QkvNames::separate(path, ["to_q", "to_k", "to_v"]);
        Self::new(qkv, WeightNames::of(&format!("{path}.to_out.0")), Orientation::OutputInput)
    }

    /// The names of a VAE's attention at `path`, as the checkpoint has them: those of [`diffusers`](Self::diffusers) with `group_norm`;
    /// those of its older files, `query`, `key`, `value`, `proj_attn`; or those of the first Stable Diffusion, `norm`, `q`, `k`, `v`,
    /// `proj_out`. Matrices may be kernels of 1×1 convolutions, `[C, C, 1, 1]`.
    pub fn vae(checkpoint: &Checkpoint, path: &str) -> Self {
        let (norm, qkv, output) =
            [("group_norm", ["query", "key", "value"], "proj_attn"), ("norm", ["q", "k", "v"], "proj_out")]
                .into_iter()
                .find(|(_, [query, ..], _)| checkpoint.contains(&format!("{path}.{query}.weight")))
                .unwrap_or(("group_norm", ["to_q", "to_k", "to_v"], "to_out.0"));
        let output = WeightNames::of(&format!("{path}.{output}"));
        let norm = NormNames::of(&format!("{path}.{norm}"));
        Self::new(QkvNames::separate(path, qkv), output, Orientation::OutputInput).with_norm(norm)
    }
}

/// Where the parameters of a joint attention are in a checkpoint. Names of what a layer does not have are not looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JointNames {
    /// Those of the image tokens, or of a single stream.
    pub image: AttentionNames,
    /// Those of the text tokens.
    pub text: AttentionNames,
}

impl JointNames {
    /// These names.
    pub fn new(image: AttentionNames, text: AttentionNames) -> Self {
        Self { image, text }
    }

    /// The names of the `diffusers` library at `path`: `to_q`, `norm_q`, `to_out.0` and so on for the image, `add_q_proj`,
    /// `norm_added_q`, `to_add_out` for the text.
    pub fn diffusers(path: &str) -> Self {
        let norms = |[query, key]: [&str; 2]| QkNormNames::of(&format!("{path}.{query}"), &format!("{path}.{key}"));
        let text = QkvNames::separate(path, ["add_q_proj", "add_k_proj", "add_v_proj"]);
        let text = AttentionNames::new(text, WeightNames::of(&format!("{path}.to_add_out")), Orientation::OutputInput);
        Self::new(
            AttentionNames::diffusers(path).with_qk_norm(norms(["norm_q", "norm_k"])),
            text.with_qk_norm(norms(["norm_added_q", "norm_added_k"])),
        )
    }
}
