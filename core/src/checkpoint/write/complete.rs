//! A file that has its name once it is complete.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::WeightError;

/// Calls `write` with the path of a new file in the folder of `path`, and gives that file the name `path`. After an error the new file is
/// gone, and what was at `path` is as it was.
pub(super) fn complete(path: &Path, write: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), WeightError> {
    let failed = |cause: String| WeightError::Write { path: path.into(), cause };
    // A link stays, and the file that it leads to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    if fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(failed("something that is no file has this name".into()));
    }
    let new = new_file(&target).map_err(failed)?;
    let written = write(&new).and_then(|()| fs::rename(&new, &target).map_err(|cause| cause.to_string()));
    written.map_err(|cause| {
        // The cause above says more than a failure to remove what it left.
        _ = fs::remove_file(&new);
        failed(cause)
    })
}

/// Creates an empty file next to `target`. Its name is not that of a checkpoint.
fn new_file(target: &Path) -> Result<PathBuf, String> {
    let mut number = 0u32;
    loop {
        let new = target.with_file_name(format!(".{}-{number}.partial", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&new) {
            Ok(_) => return Ok(new),
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(cause) => return Err(cause.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let read = || fs::read_to_string(&path).expect("a file");
        let entries = || fs::read_dir(folder.path()).expect("a folder").count();
        complete(&path, |new| fs::write(new, "first").map_err(|cause| cause.to_string())).expect("a file");
        let error = complete(&path, |new| {
            fs::write(new, "sec").map_err(|cause| cause.to_string())?;
            Err("the disk is full".into())
        });
        let message = error.expect_err("an error").to_string();
        assert!(message.contains("model.gguf: the disk is full"), "{message}");
        assert_eq!((read(), entries()), ("first".into(), 1));
        complete(&path, |new| fs::write(new, "second").map_err(|cause| cause.to_string())).expect("a file");
        assert_eq!((read(), entries()), ("second".into(), 1));
        let error = complete(folder.path(), |_| Ok(())).expect_err("a folder cannot be replaced").to_string();
        assert!(error.contains("no file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_its_file_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs::write(&file, "first").expect("a file");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        complete(&link, |new| fs::write(new, "second").map_err(|cause| cause.to_string())).expect("a file");
        assert_eq!(fs::read_to_string(&file).expect("a file"), "second");
        assert!(link.is_symlink());
    }
}
