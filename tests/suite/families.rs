//! Checkpoints of the newer families: greedy decoding against what `transformers` generated.

use std::num::NonZeroUsize;
use std::path::Path;

use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, WeightNames, families,
};
use burn_deepspeed::weight::Orientation;
use burn_deepspeed::{
    AttentionInit, DataType, DeepSpeedInferenceConfig, InferenceBackend, KvCacheType, NormType, WeightError,
};
use burn_deepspeed_examples::int8;
use burn_deepspeed_examples::text::{Batch, Model, Options, TextModel, check};
use serde_json::json;

use crate::common::{golden, golden_families, on_each_cpu_backend};

fn open<B: InferenceBackend>(folder: &Path, options: &Options) -> Model<B> {
    let opened = Model::<B>::open(folder, options, &Default::default());
    let (model, report) = opened.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{}: {report}", folder.display());
    model
}

fn check_all<B: InferenceBackend>(chunk: Option<NonZeroUsize>) {
    for (name, folder) in golden_families() {
        let model = open::<B>(&folder, &Options::default());
        check::run(&model, &folder.join("expected.json"), chunk).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

fn every_family_generates_the_same_ids<B: InferenceBackend>() {
    check_all::<B>(None);
}

fn prompts_in_pieces_give_the_same_ids<B: InferenceBackend>() {
    check_all::<B>(NonZeroUsize::new(1));
    check_all::<B>(NonZeroUsize::new(4));
}

/// The checkpoint of a golden language model inside of one that reads images: under a prefix, next to other tensors.
fn published(
    family: &str,
    record: impl FnOnce(serde_json::Value) -> serde_json::Value,
    rename: impl Fn(&str) -> String,
    others: &[&str],
) -> tempfile::TempDir {
    let (folder, text) = (tempfile::tempdir().unwrap(), golden("families").join(family));
    let config = std::fs::read_to_string(text.join("config.json")).unwrap();
    let whole = record(serde_json::from_str(&config).unwrap());
    std::fs::write(folder.path().join("config.json"), whole.to_string()).unwrap();
    let mut tensors = crate::resharding::entries(&text.join("model.safetensors"));
    tensors.iter_mut().for_each(|tensor| tensor.0 = rename(&tensor.0));
    tensors.extend(others.iter().map(|name| (name.to_string(), safetensors::Dtype::F32, vec![1], vec![0; 4])));
    crate::load::save(&folder.path().join("model.safetensors"), &tensors);
    folder
}

/// The language model of such a checkpoint gives the ids that it gives alone, and only if it is asked for.
fn runs_alone(family: &str, folder: &tempfile::TempDir) {
    type B = crate::common::AnyBackend;
    let model = open::<B>(folder.path(), &Options { text_only: true, ..Options::default() });
    check::run(&model, &golden("families").join(family).join("expected.json"), None).unwrap();
    let error = Model::<B>::open(folder.path(), &Options::default(), &Default::default()).err().unwrap().to_string();
    assert!(error.contains("text_only"), "{error}");
}

#[test]
fn the_language_model_of_a_llama_4_runs_alone() {
    let whole = |text| json!({ "model_type": "llama4", "text_config": text, "vision_config": { "hidden_size": 4 } });
    let rename = |name: &str| format!("language_model.{name}");
    runs_alone("llama4", &published("llama4", whole, rename, &["vision_model.class_embedding"]));
}

/// Published files leave out the settings of the language model that are its class's defaults.
#[test]
fn the_language_model_of_a_gemma_3_runs_alone() {
    let whole = |mut text: serde_json::Value| {
        for key in ["attn_logit_softcapping", "hidden_activation", "rms_norm_eps", "tie_word_embeddings"] {
            text.as_object_mut().unwrap().remove(key);
        }
        json!({ "model_type": "gemma3", "mm_tokens_per_image": 4, "text_config": text, "vision_config": { "hidden_size": 4 } })
    };
    let others = ["vision_tower.vision_model.post_layernorm.bias", "multi_modal_projector.mm_soft_emb_norm.weight"];
    runs_alone("gemma3", &published("gemma3", whole, |name| format!("language_model.{name}"), &others));
}

/// The class around a Ministral 3 ties embeddings unless it says otherwise; the output embedding of the file counts all the same.
#[test]
fn the_language_model_of_a_mistral_3_runs_alone() {
    let whole = |text| {
        json!({
            "image_token_index": 10, "model_type": "mistral3", "multimodal_projector_bias": false, "projector_hidden_act": "gelu",
            "spatial_merge_size": 2, "text_config": text, "vision_config": { "hidden_size": 4 }, "vision_feature_layer": -1
        })
    };
    let others = ["vision_tower.ln_pre.weight", "multi_modal_projector.norm.weight"];
    runs_alone("ministral3", &published("ministral3", whole, |name| format!("language_model.{name}"), &others));
}

/// Its output embedding would be outside of the prefix. Published files have keys that no layer reads.
#[test]
fn the_language_model_of_a_gemma_4_runs_alone() {
    let whole = |text| json!({ "model_type": "gemma4", "text_config": text, "vision_config": {} });
    let rename = |name: &str| name.replacen("model.", "model.language_model.", 1);
    let others = [
        "model.vision_tower.std_bias",
        "model.embed_audio.weight",
        "model.language_model.layers.4.self_attn.k_proj.weight",
    ];
    runs_alone("gemma4", &published("gemma4", whole, rename, &others));
}

/// Heads and MLP split over two ranks: halves of a gate that is stored with its MLP, norms after the sum, norms over all heads.
#[cfg(feature = "local")]
fn every_family_generates_the_same_ids_on_ranks<B: InferenceBackend>() {
    use burn_deepspeed::Communicator;
    use burn_deepspeed::parallel::local::LocalCommunicator;
    use std::sync::Arc;

    for (name, folder) in golden_families() {
        crate::ranks::on_ranks(LocalCommunicator::group(2), |communicator| {
            let communicator: Arc<dyn Communicator> = communicator;
            let options = Options { rank: Some(communicator), uneven_heads: true, ..Options::default() };
            let model = open::<B>(&folder, &options);
            check::run(&model, &folder.join("expected.json"), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        });
    }
}

/// Rounding to int8 moves the logits of such narrow models by more than those of `models`.
fn int8_keeps_the_logits_close<B: InferenceBackend>() {
    for (name, folder) in golden_families() {
        let int8 = open::<B>(&folder, &Options::default()).in_int8(true, KvCacheType::INT8).unwrap();
        let found = int8::distance(&*int8, &folder.join("expected.json")).unwrap();
        assert!(found.logits <= 0.1 && found.logits > 0.0, "{name}: {found:?}");
        // Loaded as int8, the numbers are the same.
        let loaded =
            open::<B>(&folder, &Options { dtype: DataType::Int8, kv_cache: KvCacheType::INT8, ..Options::default() });
        let again = int8::distance(&loaded, &folder.join("expected.json")).unwrap();
        assert!((found.logits - again.logits).abs() < 1e-4, "{name}: {found:?}, {again:?}");
    }
}

/// A record of Burn holds every parameter, those of the norms after the branches too.
fn records_hold_every_parameter<B: InferenceBackend>() {
    for name in
        ["deepseek_v2", "deepseek_v3", "gemma2", "gemma4", "gpt_oss", "olmo3", "phi3", "qwen2_moe", "stablelm_parallel"]
    {
        let folder = golden("families").join(name);
        let record = tempfile::tempdir().unwrap();
        let path = record.path().join("model");
        let model = open::<B>(&folder, &Options::default());
        model.save(&path).unwrap();
        let again = model.with_record(&path).unwrap();
        check::run(&*again, &folder.join("expected.json"), None).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

on_each_cpu_backend!(every_family_generates_the_same_ids);

#[cfg(feature = "ndarray")]
mod on_ndarray {
    #[test]
    fn prompts_in_pieces_give_the_same_ids() {
        super::prompts_in_pieces_give_the_same_ids::<burn_ndarray::NdArray>();
    }

    #[cfg(feature = "local")]
    #[test]
    fn every_family_generates_the_same_ids_on_ranks() {
        super::every_family_generates_the_same_ids_on_ranks::<burn_ndarray::NdArray>();
    }

    #[test]
    fn int8_keeps_the_logits_close() {
        super::int8_keeps_the_logits_close::<burn_ndarray::NdArray>();
    }

    #[test]
    fn records_hold_every_parameter() {
        super::records_hold_every_parameter::<burn_ndarray::NdArray>();
    }
}

/// Norm weights that a file stores minus 1 are read and written that way, and are what they are in the module.
#[test]
fn norms_that_are_stored_minus_one_are_read_and_written() {
    type B = crate::common::AnyBackend;
    let device = Default::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let config = DeepSpeedInferenceConfig::new(24, 3)
        .with_dtype(DataType::Fp32)
        .with_norm_type(NormType::RMSNorm)
        .with_qkv_bias(false)
        .with_output_bias(false);
    let qkv = QkvNames::fused("qkv", QkvLayout::Concat);
    let names = AttentionNames::new(qkv, WeightNames::of("output"), Orientation::OutputInput);
    let names = |plus_one| names.clone().with_norm(NormNames::of("norm").with_plus_one(plus_one));
    let mut writer = CheckpointWriter::default();
    config.init_self_attention::<B>(0, &device).unwrap().write(&mut writer, &names(true)).unwrap();
    writer.save(&path).unwrap();
    let gamma = |plus_one| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let attention =
            config.init_self_attention::<B>(0, &device).unwrap().load(&checkpoint, &names(plus_one)).unwrap();
        attention.norm().unwrap().gamma().into_data().iter::<f32>().collect::<Vec<_>>()
    };
    assert_eq!((gamma(true), gamma(false)), (vec![1.0; 24], vec![0.0; 24]));
}

/// A norm without weights has factors of 1, which no file holds; others are not lost.
#[test]
fn norms_without_weights_are_read_and_written() {
    type B = crate::common::AnyBackend;
    let device = Default::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let config = DeepSpeedInferenceConfig::new(24, 3).with_dtype(DataType::Fp32).with_norm_bias(false);
    let qkv = QkvNames::fused("qkv", QkvLayout::Concat);
    let names = AttentionNames::new(qkv, WeightNames::of("output"), Orientation::OutputInput);
    let names = |unweighted| names.clone().with_norm(NormNames::of("norm").with_unweighted(unweighted));
    let attention = config.init_self_attention::<B>(0, &device).unwrap();
    let mut writer = CheckpointWriter::default();
    attention.write(&mut writer, &names(true)).unwrap();
    writer.save(&path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(!checkpoint.contains("norm.weight"));
    let random = crate::attention::randomised(attention);
    let error = random.write(&mut CheckpointWriter::default(), &names(true)).unwrap_err();
    assert!(matches!(error, WeightError::WeightedNorm(name) if name == "norm.weight"));
    let gamma = random.load(&checkpoint, &names(true)).unwrap().norm().unwrap().gamma();
    assert_eq!(gamma.into_data().iter::<f32>().collect::<Vec<_>>(), [1.0; 24]);
    checkpoint.finish().unwrap();
}

/// A file that states another width than its tensors have is an error that names the tensor, before anything is allocated.
#[test]
fn a_width_that_the_file_does_not_have_is_an_error() {
    type B = crate::common::AnyBackend;
    for (name, tensor) in [
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.0.w2.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight"),
        ("qwen3", "model.layers.0.mlp.gate_proj.weight"),
    ] {
        let (source, folder) = (golden("families").join(name), tempfile::tempdir().unwrap());
        std::fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let text = std::fs::read_to_string(source.join("config.json")).unwrap();
        for width in [41u64, 1 << 40] {
            let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
            record["intermediate_size"] = width.into();
            std::fs::write(folder.path().join("config.json"), record.to_string()).unwrap();
            let error = Model::<B>::open(folder.path(), &Options::default(), &Default::default()).unwrap_err();
            assert!(error.to_string().contains(tensor), "{name}: {error}");
        }
    }
}

/// A folder with these changes of a family's configuration, and with its tensors after a change.
fn changed(
    name: &str,
    keys: serde_json::Value,
    change: impl FnOnce(&mut Vec<crate::load::Entry>),
) -> tempfile::TempDir {
    let (source, folder) = (golden("families").join(name), tempfile::tempdir().unwrap());
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    record.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    std::fs::write(folder.path().join("config.json"), record.to_string()).unwrap();
    let mut tensors = crate::resharding::entries(&source.join("model.safetensors"));
    change(&mut tensors);
    crate::load::save(&folder.path().join("model.safetensors"), &tensors);
    folder
}

/// Sizes of latents and experts, and a number of experts, are compared with the tensors.
#[test]
fn a_deepseek_of_other_sizes_than_its_file_is_an_error() {
    type B = crate::common::AnyBackend;
    for (key, value, tensor) in [
        ("kv_lora_rank", 15u64, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"),
        ("kv_lora_rank", 1 << 40, "`kv_lora_rank` is 1099511627776"),
        ("q_lora_rank", 12, "model.layers.0.self_attn.q_a_proj.weight"),
        ("q_lora_rank", 1 << 20, "model.layers.0.self_attn.q_a_proj.weight"),
        ("v_head_dim", 8, "model.layers.0.self_attn.o_proj.weight"),
        ("v_head_dim", 1 << 20, "model.layers.0.self_attn.o_proj.weight"),
        ("intermediate_size", 1 << 40, "model.layers.0.mlp.gate_proj.weight"),
        ("moe_intermediate_size", 1 << 40, "model.layers.1.mlp.experts.0.down_proj.weight"),
        ("n_routed_experts", 3 << 40, "model.layers.1.mlp.experts.6.down_proj.weight"),
        ("n_shared_experts", 1 << 40, "model.layers.1.mlp.shared_experts.gate_proj.weight"),
        ("num_hidden_layers", 1 << 40, "model.layers.3.self_attn.o_proj.weight"),
    ] {
        let folder = changed("deepseek_v3", serde_json::json!({ key: value }), |_| ());
        let error = Model::<B>::open(folder.path(), &Options::default(), &Default::default()).unwrap_err();
        assert!(error.to_string().contains(tensor), "{key}: {error}");
    }
}

/// The layers after the last one that DeepSeek V3's files have are not loaded; tensors that are not of these layers are unexpected.
#[test]
fn layers_that_predict_later_tokens_are_not_loaded() {
    type B = crate::common::AnyBackend;
    let after = |tensors: &mut Vec<crate::load::Entry>, layer: usize| {
        let of_last: Vec<_> =
            tensors.iter().filter(|tensor| tensor.0.starts_with("model.layers.2.")).cloned().collect();
        assert!(!of_last.is_empty());
        let name = |name: &str| name.replace("model.layers.2.", &format!("model.layers.{layer}."));
        tensors.extend(of_last.into_iter().map(|tensor| (name(&tensor.0), tensor.1, tensor.2, tensor.3)));
    };
    let expected = golden("families/deepseek_v3").join("expected.json");
    for (count, layers) in
        [(serde_json::json!(1), &[3][..]), (serde_json::Value::Null, &[3]), (serde_json::json!(2), &[3, 4])]
    {
        let keys = serde_json::json!({ "num_nextn_predict_layers": count });
        let folder = changed("deepseek_v3", keys, |tensors| layers.iter().for_each(|&layer| after(tensors, layer)));
        check::run(&open::<B>(folder.path(), &Options::default()), &expected, None).unwrap();
    }
    for (count, layer) in [(1, 4), (1, 30), (0, 3)] {
        let keys = serde_json::json!({ "num_nextn_predict_layers": count });
        let folder = changed("deepseek_v3", keys, |tensors| after(tensors, layer));
        let error = Model::<B>::open(folder.path(), &Options::default(), &Default::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("model.layers.{layer}.")), "{error}");
    }
    // V2 has no such layers.
    let folder = changed("deepseek_v2", serde_json::json!({}), |tensors| after(tensors, 3));
    let error = Model::<B>::open(folder.path(), &Options::default(), &Default::default()).unwrap_err().to_string();
    assert!(error.contains("model.layers.3."), "{error}");
}

/// Weights in fp8, as DeepSeek published V3: the configuration says so, and without it the first such tensor does.
#[test]
fn weights_in_fp8_are_an_error() {
    type B = crate::common::AnyBackend;
    let name = "model.layers.1.self_attn.kv_b_proj.weight";
    let keys = serde_json::json!({ "quantization_config": { "fmt": "e4m3", "quant_method": "fp8" } });
    let folder = changed("deepseek_v3", keys, |tensors| {
        let tensor = tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap();
        tensor.1 = safetensors::Dtype::F8_E4M3;
        tensor.3.truncate(tensor.2.iter().product());
    });
    let error =
        |options: &Options| Model::<B>::open(folder.path(), options, &Default::default()).unwrap_err().to_string();
    let stated = error(&Options::default());
    assert!(stated.contains("`quantization_config` is") && stated.contains("bf16"), "{stated}");
    let allowed = Options { allowed_keys: vec!["quantization_config".into()], ..Options::default() };
    let found = error(&allowed);
    assert!(found.contains(name) && found.contains("F8_E4M3"), "{found}");
}

/// A cached row is key and value: it has one element type, and a quarter of the bytes in int8, with a scale.
#[test]
fn a_cache_of_latents_has_one_row_for_all_heads() {
    type B = crate::common::AnyBackend;
    let folder = golden("families/deepseek_v3");
    let model = open::<B>(&folder, &Options::default());
    assert_eq!(model.cache_bytes().unwrap(), 3 * 96 * 4 * (14 + 6)); // layers, tokens, bytes, latent and rotated key
    let keys = KvCacheType { key: Some(DataType::Int8), ..KvCacheType::default() };
    let batch = Batch::single(&[3, 4]);
    let error = model.in_int8(false, keys).unwrap().session(&batch, 1).err().unwrap().to_string();
    assert!(error.contains("one element type"), "{error}");
    let options = Options { kv_cache: keys, ..Options::default() };
    let error = Model::<B>::open(&folder, &options, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("one element type"), "{error}");
}

#[test]
fn every_decoder_has_a_checkpoint() {
    let all: Vec<_> = crate::common::golden_models().into_iter().chain(golden_families()).collect();
    let types: Vec<String> = all
        .iter()
        .map(|(_, folder)| {
            let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
            let record: serde_json::Value = serde_json::from_str(&text).unwrap();
            record["model_type"].as_str().unwrap().to_string()
        })
        .collect();
    let decoders = families::ALL.iter().filter(|family| family.decoder.is_some());
    let without = decoders.filter(|family| !types.iter().any(|name| name == family.name()));
    let without: Vec<_> = without.map(|family| family.name()).collect();
    assert_eq!(without, ["gpt_neo"]);
}
