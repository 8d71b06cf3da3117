//! How a checkpoint is opened.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use super::{Checkpoint, Location};
use crate::checkpoint::data_file::DataFile;
use crate::checkpoint::folder::{Folder, Found};
use crate::checkpoint::gguf::{self, Gguf, Place, RowOrder};
use crate::checkpoint::safetensors_header;
use crate::checkpoint::wrapper;
use crate::error::WeightError;

impl Checkpoint {
    /// Opens a file of safetensors or a GGUF, or a folder: `model.safetensors`, the shards that `model.safetensors.index.json` lists, or
    /// without them the one GGUF that it has. Of a GGUF in several parts this is the first. A tensor that is in several shards is read from
    /// the one that the index names. Tensors of a GGUF have the names that their family has in `transformers`, or
    /// those in the file if it has no `general.architecture`, as a [`CheckpointWriter`](crate::checkpoint::CheckpointWriter) writes it. A
    /// [`wrapper`](Self::wrapper) that is before every name is taken off.
    ///
    /// # Errors
    /// [`WeightError::File`] if a file is missing or damaged, [`WeightError::NoSafetensors`] with what the folder has
    /// instead, [`WeightError::NotInShard`] and [`WeightError::InTwoShards`] for an index that does not fit its files.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightError> {
        let path = path.as_ref();
        match Folder::open(path)? {
            Found::Gguf(file) => Ok(Self { path: path.into(), ..Self::of_gguf(&Gguf::open(file)?)? }),
            Found::Safetensors(folder) => Self::of_safetensors(path, folder),
        }
    }

    /// The tensors of a GGUF file whose header was read, under the names that their family has in `transformers`. Those of a file without
    /// `general.architecture` have the names in the file.
    ///
    /// # Errors
    /// [`WeightError::Config`] for an unknown architecture; [`WeightError::File`] for a tensor that it does not have, or if a file cannot be
    /// opened.
    pub fn of_gguf(gguf: &Gguf) -> Result<Self, WeightError> {
        let mut checkpoint = Self::empty(gguf.path());
        let (architecture, tensors) = gguf::tensors(gguf)?;
        if let Some(architecture) = architecture {
            checkpoint.gguf = Some(architecture.name);
            // The configuration reads these.
            checkpoint.log.get_mut().ignored.extend(tensors.keys().filter(|name| gguf::is_factor(name)).cloned());
        }
        let place = |(name, (Place { file, stored }, rows))| (name, Location { file, stored, rows });
        checkpoint.tensors = tensors.into_iter().map(place).collect();
        checkpoint.files = gguf.files().iter().map(|file| DataFile::open(file)).collect::<Result<_, _>>()?;
        Ok(checkpoint.unwrapped())
    }

    fn of_safetensors(path: &Path, Folder { files, named, index }: Folder) -> Result<Self, WeightError> {
        let mut checkpoint = Self::empty(path);
        let mut owners: BTreeMap<String, usize> = BTreeMap::new();
        for (at, path) in files.iter().enumerate() {
            for (name, stored) in safetensors_header::read(path)? {
                // The index says which of several files counts.
                if named.get(&name).is_some_and(|&owner| owner != at) {
                    continue;
                }
                if let Some(&other) = owners.get(&name) {
                    let files = [other, at].map(|file| files[file].display().to_string());
                    return Err(WeightError::InTwoShards { name, files });
                }
                owners.insert(name.clone(), at);
                checkpoint.tensors.insert(name, Location { file: at, stored, rows: RowOrder::AsStored });
            }
            checkpoint.files.push(DataFile::open(path)?);
        }
        if let Some((name, &file)) = named.iter().find(|(name, _)| !owners.contains_key(*name)) {
            let (index, file) = (index.unwrap_or_default(), files[file].display().to_string());
            return Err(WeightError::NotInShard { index, name: name.clone(), file });
        }
        Ok(checkpoint.unwrapped())
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.into(),
            one_of_several: false,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            wrapper: String::new(),
            scale_format: None,
            gguf: None,
            log: RefCell::default(),
        }
    }

    /// [`open`](Self::open), for one of several files that make a checkpoint: errors name the file.
    pub(in crate::checkpoint) fn open_one_of_several(path: &Path) -> Result<Self, WeightError> {
        Ok(Self { one_of_several: true, ..Self::open(path)? })
    }

    /// Takes off what a wrapper of the model put before every name.
    fn unwrapped(mut self) -> Self {
        while let Some(wrapper) = wrapper::of_all(self.tensors.keys()) {
            let strip = |(name, location): (String, Location)| (name[wrapper.len()..].to_owned(), location);
            self.tensors = self.tensors.into_iter().map(strip).collect();
            self.wrapper.push_str(wrapper);
        }
        self
    }
}
