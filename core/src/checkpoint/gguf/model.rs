//! A file in the words of its family.

use std::collections::BTreeMap;

use serde_json::Value;

use super::architecture::Architecture;
use super::architectures::ALL;
use super::header::{Gguf, Place};
use super::metadata::Metadata;
use super::rows::RowOrder;
use super::settings::Settings;
use crate::error::{ConfigError, Origin, WeightError};

/// The architectures in a table of Markdown, one per line, sorted by name.
pub fn table() -> String {
    let mut lines: Vec<String> = ALL.iter().map(|architecture| architecture.line()).collect();
    lines.sort();
    format!(
        "| `general.architecture` | `model_type` | stored in another form |\n| --- | --- | --- |\n{}\n",
        lines.join("\n")
    )
}

const KEY: &str = "general.architecture";

/// The architecture of a file.
///
/// # Errors
/// [`ConfigError::Missing`] if the file states none; [`ConfigError::Unsupported`] for one that is unknown, and for a file that is no model.
pub(in crate::checkpoint) fn architecture(gguf: &Gguf) -> Result<&'static Architecture, ConfigError> {
    stated(gguf)?.ok_or(ConfigError::Missing { key: KEY, origin: Origin::Gguf })
}

/// The architecture of a file that states one.
fn stated(gguf: &Gguf) -> Result<Option<&'static Architecture>, ConfigError> {
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
    let Some(name) = text(KEY)? else { return Ok(None) };
    ALL.iter().copied().find(|architecture| architecture.name == name).map(Some).ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|architecture| format!("\"{}\"", architecture.name)).collect();
        unsupported(KEY, name, names.join(", "))
    })
}

/// The record of a `config.json` for a file. Keys in `allowed` may be unknown.
///
/// # Errors
/// [`ConfigError::UnreadKeys`] for a key below the name of the architecture that is not understood; [`ConfigError::Unsupported`],
/// [`ConfigError::WrongType`] or [`ConfigError::Missing`].
pub(in crate::checkpoint) fn record(gguf: &Gguf, allowed: &[String]) -> Result<Value, ConfigError> {
    let architecture = architecture(gguf)?;
    let names = [architecture.name, architecture.model_type];
    let mut settings = Settings::new(gguf, names, architecture.causal)?;
    (architecture.settings)(&mut settings)?;
    settings.finish(allowed)
}

/// Where tensors are, and the order of their rows.
type Tensors = BTreeMap<String, (Place, RowOrder)>;

/// The tensors of a file under the names of the family, and the order of their rows. A file without an architecture has its own names and
/// order.
///
/// # Errors
/// [`WeightError::Config`] for an unknown architecture; [`WeightError::File`] for a tensor that it does not have.
pub(in crate::checkpoint) fn tensors(gguf: &Gguf) -> Result<(Option<&'static Architecture>, Tensors), WeightError> {
    let in_file = |error: ConfigError| WeightError::Config(error.in_file(gguf.path()));
    let Some(architecture) = stated(gguf).map_err(in_file)? else {
        let own = |(name, place): (&String, &Place)| (name.clone(), (place.clone(), RowOrder::AsStored));
        return Ok((None, gguf.tensors.iter().map(own).collect()));
    };
    let mut tensors = BTreeMap::new();
    for (name, place) in &gguf.tensors {
        let failed = |cause: String| WeightError::File { path: gguf.files()[place.file].clone(), cause };
        let unknown = || failed(format!("`{name}` is no tensor of the architecture `{}`", architecture.name));
        let family = architecture.family_name(name).ok_or_else(unknown)?;
        let rows = architecture.rows(gguf, name, &place.stored.shape).map_err(in_file)?;
        if tensors.insert(family.clone(), (place.clone(), rows)).is_some() {
            return Err(failed(format!("`{name}` is the second tensor that is `{family}` in the family")));
        }
    }
    Ok((Some(architecture), tensors))
}
