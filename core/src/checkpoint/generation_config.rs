//! The `generation_config.json` next to a `config.json`.

use std::path::Path;

use crate::config::read_json;
use crate::error::ConfigError;
use crate::fields::Fields;

/// What `read` finds in the `generation_config.json` next to this `config.json`; `None` without such a file.
///
/// # Errors
/// [`ConfigError::File`] or [`ConfigError::Json`]; those of `read` in [`ConfigError::InFile`].
pub(super) fn of_generation_config<T>(
    config: &Path,
    read: impl FnOnce(&Fields<'_>) -> Result<T, ConfigError>,
) -> Result<Option<T>, ConfigError> {
    let path = config.with_file_name("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let record = read_json(&path)?;
    let found = Fields::new(&record).and_then(|fields| read(&fields));
    found.map(Some).map_err(|error| error.in_file(&path))
}
