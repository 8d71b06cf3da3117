//! What an architecture of GGUF is in the words of a model family.

use std::collections::BTreeMap;

use super::architectures::ALL;
use super::header::Gguf;
use super::metadata::Metadata;
use super::rows::RowOrder;
use super::settings::Settings;
use crate::checkpoint::layer_paths::{LayerPaths, QkNormPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::checkpoint::stored::Stored;
use crate::error::{ConfigError, Origin, WeightError};
use crate::layout::Orientation;

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
    /// What the file stores in another form than the family.
    pub(super) differences: &'static [Difference],
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
}

/// Tensors that the configuration reads: divisors of rotary frequencies.
pub(super) const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Whether the configuration reads this tensor.
pub(in crate::checkpoint) fn is_factor(name: &str) -> bool {
    FACTORS.contains(&name)
}

impl Architecture {
    /// The architecture of a file.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] for one that is unknown, and for a file that is no model.
    pub(in crate::checkpoint) fn of(gguf: &Gguf) -> Result<&'static Self, ConfigError> {
        let text = |key: &str| match gguf.value(key) {
            None => Ok(None),
            Some(Metadata::Text(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(other.wrong(key, "a text")),
        };
        let unsupported = |key: &str, value: &str, supported: String| ConfigError::Unsupported {
            key: key.into(),
            value: format!("\"{value}\""),
            supported,
        };
        if let Some(kind) = text("general.type")?.filter(|kind| *kind != "model") {
            return Err(unsupported("general.type", kind, "\"model\"".into()));
        }
        const KEY: &str = "general.architecture";
        let name = text(KEY)?.unwrap_or_default();
        ALL.iter().copied().find(|architecture| architecture.name == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|architecture| format!("\"{}\"", architecture.name)).collect();
            unsupported(KEY, name, names.join(", "))
        })
    }

    /// The differences applied to the paths of the family. Whether norms lose their 1 is for the caller.
    pub(in crate::checkpoint) fn apply(&self, layer: &mut LayerPaths) -> bool {
        for difference in self.differences {
            match *difference {
                Difference::WholeNorms => layer.norm_plus_one = false,
                Difference::OutputInput => layer.orientation = Orientation::OutputInput,
                Difference::QkNorms(paths) => layer.qk_norm = layer.qk_norm.map(|_| QkNormPaths::Whole(paths)),
                Difference::Qkv(layout) => {
                    if let QkvPaths::Fused(path, _) = layer.qkv {
                        layer.qkv = QkvPaths::Fused(path, layout);
                    }
                }
            }
        }
        self.differences.contains(&Difference::WholeNorms)
    }

    /// The name in the family.
    fn family_name(&self, name: &str) -> Option<String> {
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
    fn rows(&self, gguf: &Gguf, name: &str, shape: &[usize]) -> Result<RowOrder, ConfigError> {
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

/// Where tensors are, and the order of their rows.
type Tensors = BTreeMap<String, (Stored, RowOrder)>;

/// The tensors of a file under the names of the family, and the order of their rows.
///
/// # Errors
/// [`WeightError::Config`] for an unknown architecture; [`WeightError::File`] for a tensor that it does not have.
pub(in crate::checkpoint) fn tensors(gguf: &Gguf) -> Result<(&'static Architecture, Tensors), WeightError> {
    let in_file = |error: ConfigError| WeightError::Config(error.in_file(gguf.path()));
    let architecture = Architecture::of(gguf).map_err(in_file)?;
    let mut tensors = BTreeMap::new();
    for (name, stored) in &gguf.tensors {
        let failed = |cause: String| WeightError::File { path: gguf.path().into(), cause };
        let unknown = || failed(format!("`{name}` is no tensor of the architecture `{}`", architecture.name));
        let family = architecture.family_name(name).ok_or_else(unknown)?;
        let rows = architecture.rows(gguf, name, &stored.shape).map_err(in_file)?;
        if tensors.insert(family.clone(), (stored.clone(), rows)).is_some() {
            return Err(failed(format!("`{name}` is the second tensor that is `{family}` in the family")));
        }
    }
    Ok((architecture, tensors))
}
