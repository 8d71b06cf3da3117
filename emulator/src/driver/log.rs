//! Lines for scripts.

use std::fmt::Arguments;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::settings::Settings;

/// Appends a line to the log, if there is one.
pub fn line(text: Arguments<'_>) {
    if let Some(path) = &Settings::get().log {
        append(path, text);
    }
}

/// Appends a line to a file.
pub fn append(path: &Path, text: Arguments<'_>) {
    static LOCK: Mutex<()> = Mutex::new(());
    let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(format!("{text}\n").as_bytes())) {
        eprintln!("emulator: {}: {error}", path.display());
    }
}
