//! The language model inside of a model that also reads images or sound.

use serde_json::Value;

use super::known;
use crate::error::ConfigError;
use crate::fields::Fields;

/// A model of a language model and something that reads images or sound.
#[derive(Debug, PartialEq)]
pub(super) struct Composite {
    /// Its `model_type`.
    model_type: &'static str,
    /// Values of `model_type` of its language model; the first if there is none.
    text: &'static [&'static str],
    /// The class of its configuration.
    class: &'static str,
    /// Keys that concern images and sound alone.
    images: &'static [&'static [&'static str]],
    /// Where the names of the language model begin, and those of everything else.
    prefixes: (&'static str, &'static [&'static str]),
    /// What precedes the name of the output embedding.
    head: &'static str,
    /// Which flag says whether embeddings are tied.
    tied: Tied,
}

/// Which flag says whether the output embedding is the input embedding, of that of the class and that of its language model.
#[derive(Debug, PartialEq)]
enum Tied {
    /// That of the language model; the class cannot tie.
    Text,
    /// Both, which are true by default.
    Both,
    /// That of the class, which is true by default.
    Class,
}

/// Key of that flag.
const TIED: &str = "tie_word_embeddings";
/// The record of the language model.
const TEXT: &str = "text_config";
/// Settings that the language model may leave to the record around it.
const SHARED: [&str; 3] = ["dtype", "eos_token_id", "torch_dtype"];

const ALL: &[Composite] = &[LLAMA4, MISTRAL3, GEMMA3, GEMMA4];

/// Keys of images that several classes have.
const IMAGES: &[&str] = &[
    "boi_token_id",
    "boi_token_index",
    "eoi_token_id",
    "eoi_token_index",
    "image_token_id",
    "image_token_index",
    "vision_config",
];

const LLAMA4: Composite = Composite {
    model_type: "llama4",
    text: &["llama4_text"],
    class: "Llama4Config",
    images: &[IMAGES],
    prefixes: ("language_model.", &["multi_modal_projector.", "vision_model."]),
    head: "language_model.",
    tied: Tied::Text,
};

/// Mistral Small 3 and Ministral 3.
const MISTRAL3: Composite = Composite {
    model_type: "mistral3",
    text: &["mistral", "ministral3"],
    class: "Mistral3Config",
    images: &[&[
        "image_token_id",
        "image_token_index",
        "multimodal_projector_bias",
        "projector_hidden_act",
        "spatial_merge_size",
        "vision_config",
        "vision_feature_layer",
    ]],
    prefixes: ("language_model.", &["multi_modal_projector.", "vision_tower."]),
    head: "language_model.",
    tied: Tied::Class,
};

const GEMMA3: Composite = Composite {
    model_type: "gemma3",
    text: &["gemma3_text"],
    class: "Gemma3Config",
    images: &[IMAGES, &["mm_tokens_per_image"]],
    prefixes: ("language_model.", &["multi_modal_projector.", "vision_tower."]),
    head: "language_model.",
    tied: Tied::Both,
};

const GEMMA4: Composite = Composite {
    model_type: "gemma4",
    text: &["gemma4_text"],
    class: "Gemma4Config",
    images: &[&[
        "audio_config",
        "audio_token_id",
        "boa_token_id",
        "boi_token_id",
        "eoa_token_id",
        "eoa_token_index",
        "eoi_token_id",
        "image_token_id",
        "video_token_id",
        "vision_config",
        "vision_soft_tokens_per_image",
    ]],
    prefixes: (
        "model.language_model.",
        &["model.audio_tower.", "model.embed_audio.", "model.embed_vision.", "model.vision_tower."],
    ),
    head: "",
    tied: Tied::Both,
};

impl Composite {
    /// The model of this `model_type`, if it has a language model inside.
    pub(super) fn of(fields: &Fields<'_>) -> Result<Option<&'static Self>, ConfigError> {
        let model_type = fields.text(&["model_type"])?;
        Ok(ALL.iter().find(|composite| model_type == Some(composite.model_type)))
    }

    /// What precedes the names of the language model.
    pub(super) fn prefix(&self) -> &'static str {
        self.prefixes.0
    }

    /// What precedes the name of the output embedding.
    pub(super) fn head(&self) -> &'static str {
        self.head
    }

    /// Whether a tensor belongs to something else than the language model.
    pub(super) fn is_other(&self, name: &str) -> bool {
        self.prefixes.1.iter().any(|prefix| name.starts_with(prefix))
    }

    /// The error for a caller who did not ask for the language model alone.
    pub(super) fn refused(&self, fields: &Fields<'_>) -> ConfigError {
        let supported =
            format!("{}; read its language model alone with `text_only` of `ConfigOptions`", self.text_types());
        fields.unsupported("model_type", &supported)
    }

    /// The types of its language model, for an error.
    fn text_types(&self) -> String {
        format!("\"{}\"", self.text.join("\" or \""))
    }

    /// The record of the language model, with what it leaves to the record around it.
    ///
    /// # Errors
    /// [`ConfigError::UnreadKeys`], [`ConfigError::WrongType`], [`ConfigError::Unsupported`] or [`ConfigError::Spellings`] about the record around
    /// it, or its type.
    pub(super) fn language_model(&self, fields: &Fields<'_>) -> Result<Value, ConfigError> {
        let own = ["model_type", "text_config", "tie_word_embeddings"];
        let harmless = known::HARMLESS.iter().copied().flatten().copied();
        let only = known::ONLY.iter().map(|only| only.key);
        let images = self.images.iter().copied().flatten().copied();
        let known: Vec<&str> = own.into_iter().chain(SHARED).chain(harmless).chain(only).chain(images).collect();
        fields.check_keys(&known, self.class)?;
        known::ONLY.iter().try_for_each(|only| only.check(fields))?;
        let missing = || fields.wrong(TEXT, "the record of the language model");
        let text = fields.record(TEXT)?.ok_or_else(missing)?;
        let model_type = text.text(&["model_type"])?.unwrap_or(self.text[0]);
        if !self.text.contains(&model_type) {
            return Err(text.unsupported("model_type", &self.text_types()));
        }
        let mut record = fields.value(TEXT).cloned().unwrap_or_default();
        record["model_type"] = model_type.into();
        let default = self.tied != Tied::Text;
        let tied = |fields: &Fields<'_>| Ok::<_, ConfigError>(fields.flag(&[TIED])?.unwrap_or(default));
        let (outside, inside) = (tied(fields)?, tied(&text)?);
        let contradict = match self.tied {
            Tied::Text => outside && !inside,
            Tied::Both => outside != inside,
            Tied::Class => false,
        };
        if contradict {
            return Err(fields.unsupported(TIED, &format!("{inside}, as `text_config` says or means by default")));
        }
        if self.tied == Tied::Class {
            record[TIED] = outside.into();
        }
        for key in SHARED {
            if let (Some(outside), None) = (fields.value(key), text.value(key)) {
                record[key] = outside.clone();
            }
        }
        Ok(record)
    }
}
