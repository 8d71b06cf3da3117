//! What to do if a tensor or a file is not there.

use crate::spelling::{list, nearest_hint};

/// The nearest name, or what the checkpoint has.
pub(super) fn or_held(nearest: &Option<String>, held: &[String]) -> String {
    match (nearest, held) {
        (None, []) => "; it has no tensors".into(),
        (None, held) => format!("; it has {} tensors: {}", held.len(), list(held)),
        (nearest, _) => nearest_hint(nearest),
    }
}

/// The files that a folder has, for the end of a sentence.
pub(super) fn found(files: &[String]) -> String {
    if files.is_empty() { String::new() } else { format!("; it has {}", list(files)) }
}

/// How to make a safetensors file of what is there.
pub(super) fn convert(files: &[String]) -> String {
    let has = |ends: &[&str]| files.iter().find(|file| ends.iter().any(|end| file.ends_with(end)));
    match (has(&[".safetensors"]), has(&[".gguf"])) {
        (Some(file), _) => format!("open {file} itself, or rename it to `model.safetensors`"),
        (None, Some(file)) => format!("name the file that you want, such as {file}"),
        _ if has(&[".bin", ".bin.index.json", ".pth", ".pt", ".ckpt"]).is_some() => {
            format!("pickles are not read; convert them in Python:\n{}", save())
        }
        _ => "name the folder or the file of a checkpoint in safetensors".into(),
    }
}

fn save() -> &'static str {
    "  from transformers import AutoModel\n  AutoModel.from_pretrained(DIR).save_pretrained(DIR)\n\
         with the class of the model in place of AutoModel, such as AutoModelForCausalLM (see docs/checkpoints.md)"
}
