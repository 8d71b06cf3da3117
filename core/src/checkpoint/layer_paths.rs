//! Where the checkpoints of a family keep a layer and its attention.

use super::layout::QkvLayout;
use super::names::{AttentionNames, NormNames, QkNormNames, QkvNames, WeightNames};
use crate::layout::Orientation;

/// Where the checkpoints of a family keep a layer and its attention. Paths within a layer are relative to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPaths {
    /// The layers in a bare model.
    pub layers: &'static str,
    /// What `…ForCausalLM` and the like put before the names of the bare model.
    pub prefixes: &'static [&'static str],
    /// The norm before attention; `None` for post-norm models.
    pub norm: Option<&'static str>,
    /// Whether the weights of every norm of the model are stored as `w - 1`, without those of queries and keys.
    pub norm_plus_one: bool,
    /// Whether the norms of the model have no weights.
    pub norm_unweighted: bool,
    /// The norms of queries and keys.
    pub qk_norm: Option<QkNormPaths>,
    /// The sinks.
    pub sinks: Option<&'static str>,
    /// The QKV projection.
    pub qkv: QkvPaths,
    /// The output projection.
    pub output: &'static str,
    /// How the matrices of attention and MLP are stored.
    pub orientation: Orientation,
}

/// Where the QKV projection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvPaths {
    /// One matrix at this path, in this layout.
    Fused(&'static str, QkvLayout),
    /// Three projections at `path.q`, `path.k`, `path.v`, under these names.
    Separate(&'static str, [&'static str; 3]),
}

/// Where the weights of the norms of queries and of keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNormPaths {
    /// At these two paths.
    Whole([&'static str; 2]),
    /// For each head, below these two paths.
    EachHead([&'static str; 2]),
}

impl QkvPaths {
    /// `q_proj`, `k_proj` and `v_proj` at `path`.
    pub const fn projections(path: &'static str) -> Self {
        Self::Separate(path, ["q_proj", "k_proj", "v_proj"])
    }
}

impl LayerPaths {
    /// What a family has unless it says otherwise: no norm before attention, and matrices `[out, in]` as PyTorch's `Linear` has
    /// them. A record names its paths and takes the rest from here.
    pub(super) const SHARED: Self = Self {
        layers: "",
        prefixes: &[],
        norm: None,
        norm_plus_one: false,
        norm_unweighted: false,
        qk_norm: None,
        sinks: None,
        qkv: QkvPaths::projections(""),
        output: "",
        orientation: Orientation::OutputInput,
    };

    /// The names of a norm of the model.
    pub fn norm_names(&self, path: &str) -> NormNames {
        NormNames::of(path).with_plus_one(self.norm_plus_one).with_unweighted(self.norm_unweighted)
    }

    /// Whether a parameter of a layer is one of its keys or values: a projection, or the norm of keys.
    pub(super) fn is_key_or_value(&self, name: &str) -> bool {
        let at = |name: &str, path: &str| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        let is_projection = match self.qkv {
            QkvPaths::Fused(..) => false,
            QkvPaths::Separate(path, [_, key, value]) => name
                .strip_prefix(path)
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|rest| at(rest, key) || at(rest, value)),
        };
        is_projection || matches!(self.qk_norm, Some(QkNormPaths::Whole([_, key])) if at(name, key))
    }

    /// The names of the attention in the layer at `path`.
    pub fn attention(&self, path: &str) -> AttentionNames {
        let at = |rest: &str| format!("{path}.{rest}");
        let qkv = match self.qkv {
            QkvPaths::Fused(path, layout) => QkvNames::fused(&at(path), layout),
            QkvPaths::Separate(path, names) => QkvNames::separate(&at(path), names),
        };
        let names = AttentionNames::new(qkv, WeightNames::of(&at(self.output)), self.orientation);
        let norm = self.norm.map(|norm| self.norm_names(&at(norm)));
        let qk_norm = self.qk_norm.map(|paths| match paths {
            QkNormPaths::Whole([query, key]) => QkNormNames::of(&at(query), &at(key)),
            QkNormPaths::EachHead([query, key]) => QkNormNames::of_each_head(&at(query), &at(key)),
        });
        AttentionNames { norm, qk_norm, sinks: self.sinks.map(at), ..names }
    }
}

/// The number of the layer of a tensor, and the rest of its name, if it begins with `layers`.
pub(super) fn in_layer<'n>(layers: &str, name: &'n str) -> Option<(usize, &'n str)> {
    let (layer, rest) = name.strip_prefix(layers)?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}
