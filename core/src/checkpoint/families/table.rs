//! The table of families.

use super::{ALL, ENCODER_DECODERS, PAIRS};
use crate::checkpoint::encoder_decoder::EncoderDecoder;
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::QkvPaths;
use crate::layout::Orientation;

/// The families in a table of Markdown, one per line, sorted by name.
pub fn table() -> String {
    let both = ENCODER_DECODERS.iter().map(|family| line_of_both(family));
    let mut lines: Vec<String> = ALL.iter().map(|family| line(family)).chain(both).collect();
    lines.sort();
    let head = "| family | `model_type` | runs in | QKV in the file | matrices | attention and block |";
    format!("{head}\n| --- | --- | --- | --- | --- | --- |\n{}\n", lines.join("\n"))
}

fn line(family: &Family) -> String {
    let qkv = match family.layer.qkv {
        _ if family.latent.is_some() => "by latents".into(),
        QkvPaths::Fused(_, layout) => format!("fused, `{layout:?}`"),
        QkvPaths::Separate(..) => "separate".into(),
    };
    let matrices = match family.layer.orientation {
        Orientation::OutputInput => "`[out, in]`",
        Orientation::InputOutput => "`[in, out]`",
    };
    let own = family.model_types.iter().map(|name| format!("`{name}`"));
    let pairs = PAIRS.iter().filter(|pair| *pair.text == *family || *pair.vision == *family);
    let types: Vec<String> = own.chain(pairs.map(|pair| format!("in `{}`", pair.model_type))).collect();
    let program = if family.encoder.is_some() { "`embed`" } else { "`generate`" };
    let (title, types, about) = (family.title, types.join(", "), family.about);
    format!("| {title} | {types} | {program} | {qkv} | {matrices} | {about} |")
}

fn line_of_both(family: &EncoderDecoder) -> String {
    let types: Vec<String> = family.model_types.iter().map(|name| format!("`{name}`")).collect();
    let (title, types, about) = (family.title, types.join(", "), family.about);
    format!("| {title} | {types} | `seq2seq` | separate | `[out, in]` | {about}, an encoder and a decoder |")
}
