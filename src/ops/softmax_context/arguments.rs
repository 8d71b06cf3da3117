//! The arguments of an attention step, and the checks that every path makes.

use burn::tensor::{Tensor, backend::Backend};

use crate::cache::LayerCache;
use crate::element::element_type;
use crate::error::{AttentionError, check_shape};
use crate::mask::AttentionMask;
use crate::ops::attention::Visibility;
use crate::position::Positions;
use crate::spec::{AttentionSpec, KvSource};
use crate::weight::QueryKeyNorm;
use crate::zeros::zeros;
use burn_deepspeed_core::path::ContextProblem;

/// Where the keys and values of earlier tokens are.
#[derive(Debug)]
pub enum Keys<'a, B: Backend> {
    /// In a cache, to which the new ones are appended.
    Cached(LayerCache<'a, B>),
    /// There are none: the new tokens attend to each other. Layers with rotary positions, or with a factor of queries by position,
    /// need the positions of the new tokens.
    Fresh(&'a Positions),
}

impl<B: Backend> Keys<'_, B> {
    /// An error if the layer reads the keys of an earlier one, and they are not there.
    pub(crate) fn check_source(&self, spec: &AttentionSpec) -> Result<(), AttentionError> {
        match (spec.kv_source, self) {
            (KvSource::Layer(source), Self::Fresh(_)) => {
                Err(AttentionError::NoGivenKeys { layer: spec.layer_id, keys_of: source })
            }
            (_, Self::Cached(cache)) => cache.check_written(spec),
            _ => Ok(()),
        }
    }
}

/// The arguments of [`Operations::softmax_context`](crate::ops::Operations::softmax_context).
#[derive(Debug)]
pub struct SoftmaxContext<'a, B: Backend> {
    /// `q | k | v`, `[B, T, (N + 2K)·H]`; `q | k` if keys are values, and `q` if they are those of another layer.
    pub qkv: Tensor<B, 3>,
    /// The weights of the norm of queries and keys, if the layer has a norm with weights.
    pub norm: Option<&'a QueryKeyNorm<B>>,
    /// The [sums of squares](crate::ops::softmax_context::sums_of_squares) of all ranks, `[B, T, 2]` of f32, for a norm over all heads;
    /// `None` takes those of the heads in `qkv`.
    pub sums: Option<Tensor<B, 3>>,
    /// A sink for each query head, `[N]` of f32, if the layer has sinks.
    pub sinks: Option<Tensor<B, 1>>,
    /// Earlier tokens.
    pub keys: Keys<'a, B>,
    /// The keys and values of another layer for the new tokens, `[B, K, T, H]` each: what a layer attends to that
    /// [has none of its own](crate::config::KvSource) and no cache.
    pub given: Option<[Tensor<B, 4>; 2]>,
    /// What the caller hides.
    pub mask: AttentionMask<B>,
    /// Sizes of the layer.
    pub spec: &'a AttentionSpec,
    /// Whether the visible keys and values are returned, which copies them.
    pub want_keys: bool,
}

impl<B: Backend> SoftmaxContext<'_, B> {
    /// What the choice of the kernel depends on.
    pub fn problem(&self) -> ContextProblem {
        let cache = match &self.keys {
            Keys::Cached(cache) => Some(cache.types()),
            Keys::Fresh(_) => None,
        };
        ContextProblem::new(element_type(self.qkv.dtype()), self.qkv.dims()[1], self.spec.head_dim, cache)
    }

    /// Panics unless all parts fit together. Every path calls it before it writes to the cache.
    #[track_caller]
    pub(super) fn check(&self) {
        let operation = "softmax_context";
        let spec = self.spec;
        let [mut batch, mut tokens, _] = self.qkv.dims();
        if let Keys::Cached(cache) = &self.keys {
            (batch, tokens) = (cache.rows().starts().len(), cache.rows().width());
        }
        check_shape(operation, "qkv", &[batch, tokens, spec.qkv_width()], &self.qkv.dims());
        match &self.keys {
            Keys::Cached(cache) => {
                let (key, value) = cache.storage();
                let slots = key.dims()[2];
                let expected = [batch, spec.kv_heads(), slots, spec.head_dim];
                check_shape(operation, "cached keys", &expected, &key.dims());
                check_shape(operation, "cached values", &expected, &value.dims());
            }
            Keys::Fresh(positions) if spec.reads_positions() && !self.is_empty() => {
                let given = [positions.batch(), positions.tokens()];
                check_shape(operation, "positions", &[batch, tokens], &given);
            }
            Keys::Fresh(_) => {}
        }
        let without = matches!(self.keys, Keys::Fresh(_)) && !spec.kv_source.is_own();
        assert!(
            without == self.given.is_some(),
            "{operation}: keys of another layer are {}, and the layer has {}",
            if self.given.is_some() { "given" } else { "None" },
            if without { "none of its own" } else { "its own or a cache" }
        );
        for (name, tensor) in ["given keys", "given values"].into_iter().zip(self.given.iter().flatten()) {
            check_shape(operation, name, &[batch, spec.kv_heads(), tokens, spec.head_dim], &tensor.dims());
        }
        self.check_norm([batch, tokens]);
        self.check_sinks();
        let keys = self.visibility().ends.into_iter().max().unwrap_or(0);
        self.mask.check(operation, [batch, spec.heads(), tokens, keys]);
    }

    /// Panics unless the weights and sums of the norm of queries and keys are there where the layer needs them, and fit it.
    #[track_caller]
    fn check_norm(&self, [batch, tokens]: [usize; 2]) {
        let (operation, spec) = ("softmax_context", self.spec);
        check_norm_weights(operation, spec, self.norm);
        if let Some(sums) = &self.sums {
            assert!(
                spec.norm_of_all_heads().is_some(),
                "{operation}: `sums` are given, and the layer has no norm of all heads"
            );
            check_shape(operation, "sums", &[batch, tokens, 2], &sums.dims());
        }
    }

    /// Panics unless the sinks are there where the layer has some, and fit it.
    #[track_caller]
    fn check_sinks(&self) {
        let (operation, spec) = ("softmax_context", self.spec);
        assert!(
            spec.sinks == self.sinks.is_some(),
            "{operation}: `sinks` are {}, and the layer has {}",
            if self.sinks.is_some() { "given" } else { "None" },
            if spec.sinks { "sinks" } else { "no sinks" }
        );
        if let Some(sinks) = &self.sinks {
            check_shape(operation, "sinks", &[spec.heads()], &sinks.dims());
        }
    }

    /// The keys that each query may see, by the rules of the layer.
    pub(super) fn visibility(&self) -> Visibility {
        let (starts, ends) = match &self.keys {
            Keys::Cached(cache) => (cache.rows().starts().to_vec(), cache.rows().ends()),
            Keys::Fresh(_) => (vec![0], vec![self.qkv.dims()[1]]),
        };
        Visibility { causal: self.spec.causal, window: self.spec.window, starts, ends }
    }

    /// Whether there are no new tokens.
    pub(super) fn is_empty(&self) -> bool {
        let [batch, tokens, _] = self.qkv.dims();
        batch * tokens == 0
    }

    /// The output of a step without new tokens.
    pub(super) fn output_of_no_tokens(self) -> SoftmaxContextOutput<B> {
        let [batch, tokens, _] = self.qkv.dims();
        let (spec, options) = (self.spec, (&self.qkv.device(), self.qkv.dtype()));
        let seen = self.visibility().ends.into_iter().max().unwrap_or(0);
        let keys = self.want_keys.then(|| match &self.keys {
            Keys::Cached(cache) if batch * seen > 0 => {
                let (key, value) = cache.visible();
                (key.cast(options.1), value.cast(options.1))
            }
            _ => {
                let none = zeros([batch, spec.kv_heads(), seen, spec.head_dim], options);
                (none.clone(), none)
            }
        });
        SoftmaxContextOutput { context: zeros([batch, tokens, spec.query_width()], options), keys }
    }
}

/// What [`Operations::softmax_context`](crate::ops::Operations::softmax_context) returns.
#[derive(Debug, Clone)]
pub struct SoftmaxContextOutput<B: Backend> {
    /// `[B, T, N·H]`.
    pub context: Tensor<B, 3>,
    /// Keys and values, `[B, K, S, H]` each, if they were requested.
    pub keys: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
}

/// Panics unless the weights of the norm of queries and keys are there where the layer needs them, and fit it.
#[track_caller]
pub(in crate::ops) fn check_norm_weights<B: Backend>(
    operation: &str,
    spec: &AttentionSpec,
    norm: Option<&QueryKeyNorm<B>>,
) {
    let rows = |heads| spec.qk_norm.and_then(|norm| norm.weights.rows(heads));
    let expected = rows(spec.heads()).zip(rows(spec.kv_heads()));
    assert!(
        expected.is_some() == norm.is_some(),
        "{operation}: `norm` is {}, and the layer has {}",
        if norm.is_some() { "given" } else { "None" },
        if expected.is_some() { "a norm with weights" } else { "no norm with weights" }
    );
    if let (Some((query, key)), Some(norm)) = (expected, norm) {
        let (of_query, of_key) = norm.shapes();
        check_shape(operation, "query weights of the norm", &[query, spec.head_dim], &of_query);
        assert!(
            of_key.is_some() == spec.kv_source.is_own(),
            "{operation}: the key weights of the norm are {}, and the layer has {}",
            if of_key.is_some() { "given" } else { "None" },
            if of_key.is_some() { "no keys of its own" } else { "keys of its own" }
        );
        if let Some(of_key) = of_key {
            check_shape(operation, "key weights of the norm", &[key, spec.head_dim], &of_key);
        }
    }
}
