//! What an architecture of GGUF is in the words of a model family.

use super::header::Gguf;
use super::metadata::Metadata;
use super::rows::RowOrder;
use super::settings::{FACTORS, Settings};
use crate::checkpoint::layout::QkvLayout;
use crate::error::{ConfigError, Origin};

/// Names in a file and in the family.
pub(super) type Names = &'static [[&'static str; 2]];

/// An architecture: how its keys become those of a `config.json`, and its tensors those of the family.
pub(in crate::checkpoint) struct Architecture {
    /// `general.architecture`.
    pub(in crate::checkpoint) name: &'static str,
    /// The family.
    pub(super) model_type: &'static str,
    /// Tensors outside of the layers, without `.weight` and `.bias`.
    pub(super) outside: Names,
    /// What the family puts before the number of a layer.
    pub(super) layers: &'static str,
    /// Tensors of a layer. The first list that has a name counts.
    pub(super) layer: &'static [Names],
    /// Whether the rows of queries and keys are in [`RowOrder::Pairs`].
    pub(super) pairs: bool,
    /// Whether a token sees those before it alone. A file that says something else is an error.
    pub(super) causal: bool,
    /// What the file stores in another form than the family.
    pub(in crate::checkpoint) differences: &'static [Difference],
    /// Writes the keys of a `config.json`.
    pub(super) settings: fn(&mut Settings<'_>) -> Result<(), ConfigError>,
}

/// A form that differs from that of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum Difference {
    /// Norms hold their factor, and not the factor minus 1.
    WholeNorms,
    /// Matrices are `[out, in]`.
    OutputInput,
    /// The fused matrix of queries, keys and values is in this layout.
    Qkv(QkvLayout),
    /// The norms of all heads are one tensor at these paths.
    QkNorms([&'static str; 2]),
    /// The norm before the MLP, where it is at the first path, is at the second.
    MlpNorm([&'static str; 2]),
}

/// Whether the configuration reads this tensor.
pub(in crate::checkpoint) fn is_factor(name: &str) -> bool {
    FACTORS.contains(&name)
}

impl Architecture {
    /// The line of the table.
    pub(super) fn line(&self) -> String {
        let pairs = self.pairs.then(|| "rows of queries and keys, put back as they are read".into());
        let others = self.differences.iter().map(|difference| match difference {
            Difference::WholeNorms => "norms, with 1 added".into(),
            Difference::OutputInput => "matrices, `[out, in]`".into(),
            Difference::Qkv(layout) => format!("QKV, `{layout:?}`"),
            Difference::QkNorms(_) => "norms of all heads, in one tensor".into(),
            Difference::MlpNorm([from, to]) => format!("`{from}`, as `{to}`"),
        });
        let forms: Vec<String> = pairs.into_iter().chain(others).collect();
        let forms = if forms.is_empty() { "nothing".into() } else { forms.join("; ") };
        format!("| `{}` | `{}` | {forms} |", self.name, self.model_type)
    }

    /// The name in the family.
    pub(super) fn family_name(&self, name: &str) -> Option<String> {
        if is_factor(name) {
            return Some(name.into());
        }
        let (path, kind) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
        let find = |names: Names, path: &str| names.iter().find(|[own, _]| *own == path).map(|[_, other]| *other);
        let Some((layer, path)) = path.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return Some(format!("{}.{kind}", find(self.outside, path)?));
        };
        let layer: usize = layer.parse().ok()?;
        let path = self.layer.iter().find_map(|names| find(names, path))?;
        Some(format!("{}.{layer}.{path}.{kind}", self.layers))
    }

    /// Rows of queries and of keys in a head.
    pub(super) fn rows(&self, gguf: &Gguf, name: &str, shape: &[usize]) -> Result<RowOrder, ConfigError> {
        let heads = match name.rsplit('.').nth(1) {
            Some("attn_q") if self.pairs => "attention.head_count",
            Some("attn_k") if self.pairs => "attention.head_count_kv",
            _ => return Ok(RowOrder::AsStored),
        };
        let keys = [heads, "attention.head_count"].map(|key| format!("{}.{key}", self.name));
        let heads = keys.iter().find_map(|key| Some((key, gguf.value(key)?)));
        let (key, heads) = heads.ok_or(ConfigError::Missing { key: "attention.head_count", origin: Origin::Gguf })?;
        let &Metadata::Integer(heads) = heads else { return Err(heads.wrong(key, "a whole number")) };
        let rows = shape.first().copied().unwrap_or(0);
        let head = usize::try_from(heads).ok().filter(|&heads| heads > 0 && rows.is_multiple_of(2 * heads));
        let head = head.map(|heads| rows / heads).filter(|&head| head > 0);
        head.map(RowOrder::Pairs).ok_or_else(|| ConfigError::Unsupported {
            key: key.clone(),
            value: heads.to_string(),
            supported: format!("a divisor of the {rows} rows of `{name}` that leaves an even number of them"),
        })
    }
}
