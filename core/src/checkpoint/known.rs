//! Keys and tensors that are known for every family.

use super::only::Only;

/// Keys of `config.json` that are read for every family.
pub const READ: &[&str] = &["dtype", "eos_token_id", "model_type", "torch_dtype"];

/// Keys of `config.json` that change nothing that is computed here, for any family.
pub const HARMLESS: &[&[&str]] = &[BOOKKEEPING, TOKENS, GENERATION, TRAINING, SUMMARY];

/// What the Python classes and the tools around them write down.
const BOOKKEEPING: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_flash_attn_2_enabled",
    "_from_model_config",
    "_name_or_path",
    "_num_labels",
    "_use_flash_attention_2",
    "architectures",
    "attn_implementation",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "custom_pipelines",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "label2id",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
];

/// Tokens that only a tokenizer needs.
const TOKENS: &[&str] = &[
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "mask_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
];

/// Defaults of text generation, which are the caller's choice here.
const GENERATION: &[&str] = &[
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Dropout, initialisation and memory during training.
const TRAINING: &[&str] = &[
    "activation_dropout",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "embed_dropout",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "layerdrop",
    "resid_dropout",
    "resid_pdrop",
];

/// A head for classification, which is not loaded.
const SUMMARY: &[&str] =
    &["summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"];

/// Keys that change the model of any family, with the values that are supported.
pub const ONLY: &[Only] = &[
    Only::flag("add_cross_attention", false),
    Only::flag("is_encoder_decoder", false),
    Only::nothing("cross_attention_hidden_size", "the layers have no cross attention"),
    Only::nothing("per_layer_config", "layers that differ in size are not supported"),
    Only::nothing("pruned_heads", "save the checkpoint with the heads removed from its matrices"),
    Only::nothing("quantization_config", "dequantise the checkpoint, and save it in f32, f16 or bf16"),
];

/// The keys that a record supports one value of: its own, and those of [`ONLY`] of which it says nothing.
pub fn only<'a>(own: impl Iterator<Item = &'a Only> + Clone) -> impl Iterator<Item = &'a Only> {
    let shared = own.clone();
    own.chain(ONLY.iter().filter(move |only| shared.clone().all(|own| own.key != only.key)))
}

/// Ends of the names of buffers that some versions of `transformers` saved with the weights, for any family. They are computed
/// from the configuration.
pub const BUFFERS: &[&str] =
    &[".rotary_emb.cos_cached", ".rotary_emb.inv_freq", ".rotary_emb.sin_cached", ".masked_bias", ".position_ids"];
