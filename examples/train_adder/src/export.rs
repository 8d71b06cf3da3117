//! Writes the adder: as a Burn record, and as a Hugging Face checkpoint with the names and layouts of a BLOOM.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::record::{FullPrecisionSettings, NamedMpkFileRecorder};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_deepspeed::InferenceBackend;
use burn_deepspeed::load::{HuggingFaceConfig, PackQkv, QkvLayout};
use burn_deepspeed_examples::decoder::Decoder;
use burn_deepspeed_examples::text::{Model, Options};
use burn_deepspeed_examples::{Failure, tokenizer};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tokenizers::Tokenizer;

/// The Burn record, without the extension that its recorder adds.
const RECORD: &str = "model";

/// The contents of a folder that [`save`] wrote.
pub struct Saved<B: Backend> {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The model of `model.safetensors`.
    pub checkpoint: Model<B>,
    /// The model of the Burn record.
    pub record: Decoder<B>,
}

/// Writes `config.json`, `tokenizer.json`, `model.safetensors` and `model.mpk`.
pub fn save<B: Backend>(
    decoder: &Decoder<B>,
    config: &Value,
    tokenizer: &Tokenizer,
    folder: &Path,
) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|cause| format!("cannot create {}: {cause}", folder.display()))?;
    std::fs::write(folder.join("config.json"), format!("{config:#}\n"))?;
    tokenizer.save(folder.join("tokenizer.json"), true)?;
    decoder.clone().save_file(folder.join(RECORD), &recorder())?;

    let sizes = HuggingFaceConfig::from_json(config.clone())?;
    let mut writer =
        Writer { sizes: &sizes, path: Vec::new(), types: Vec::new(), tensors: BTreeMap::new(), failure: None };
    decoder.visit(&mut writer);
    if let Some(failure) = writer.failure {
        return Err(failure.into());
    }
    let views = writer.tensors.iter().map(|(name, data)| {
        let view = TensorView::new(Dtype::F32, data.shape.to_vec(), data.as_bytes())?;
        Ok((name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, Failure>>()?;
    // `transformers` asks for the format.
    let metadata = HashMap::from([("format".into(), "pt".into())]);
    Ok(safetensors::serialize_to_file(views, Some(metadata), &folder.join("model.safetensors"))?)
}

/// Reads back what [`save`] wrote.
pub fn open<B: InferenceBackend>(folder: &Path, device: &B::Device) -> Result<Saved<B>, Failure> {
    let (checkpoint, _) = Model::<B>::open(folder, &Options::default(), device)?;
    let empty = Decoder::<B>::init(&checkpoint.config, device)?;
    let record = empty.load_file(folder.join(RECORD), &recorder(), device)?;
    let tokenizer = tokenizer::open(folder)?.ok_or("the folder has no tokenizer.json")?;
    Ok(Saved { tokenizer, checkpoint, record })
}

/// Writes the Burn record of the checkpoint in `folder`.
pub fn record<B: InferenceBackend>(folder: &Path) -> Result<(), Failure> {
    let (checkpoint, _) = Model::<B>::open(folder, &Options::default(), &B::Device::default())?;
    Ok(checkpoint.decoder.save_file(folder.join(RECORD), &recorder())?)
}

fn recorder() -> NamedMpkFileRecorder<FullPrecisionSettings> {
    NamedMpkFileRecorder::default()
}

/// Collects every parameter under its Hugging Face name.
struct Writer<'a> {
    sizes: &'a HuggingFaceConfig,
    /// The path of the visit: field names, the outermost first.
    path: Vec<String>,
    /// The types that have these fields.
    types: Vec<String>,
    tensors: BTreeMap<String, TensorData>,
    failure: Option<String>,
}

impl<B: Backend> ModuleVisitor<B> for Writer<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name.into());
        self.types.push(container.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
        self.types.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let path = self.path.join(".");
        let Some(name) = hugging_face_name(&path) else {
            self.failure = Some(format!("a BLOOM checkpoint has no name for the parameter {path}; add one"));
            return;
        };
        // PyTorch stores projections `[out, in]`; all other parameters have one layout everywhere.
        let transposed = match self.types.last().map(String::as_str) {
            Some("Struct:DenseMatrix") => !self.sizes.attention_config(0).transposed_mode,
            _ => false,
        };
        let first = param.dims()[0];
        // A vector becomes a matrix of one column, so that the code below handles both.
        let mut tensor: Tensor<B, 2> = param.val().reshape([first as i32, -1]);
        if D == 2 && transposed {
            tensor = tensor.transpose();
        }
        if name.contains("query_key_value") {
            tensor = per_head(tensor, self.sizes);
        }
        let shape = tensor.dims()[..D].to_vec();
        let mut data = tensor.into_data().convert_dtype(DType::F32);
        data.shape = shape.into();
        self.tensors.insert(name, data);
    }
}

/// The BLOOM name of a parameter. The variants of enums are part of a path.
fn hugging_face_name(path: &str) -> Option<String> {
    let path = path.replace(".matrix.Dense.values", ".matrix");
    let (module, parameter) = path.rsplit_once('.')?;
    let parameter = match parameter {
        "weight" | "matrix" | "gamma" => "weight",
        "bias" | "beta" => "bias",
        _ => return None,
    };
    let module = match module {
        "head" => "lm_head".into(),
        "tokens" => "transformer.word_embeddings".into(),
        "embedding_norm" => "transformer.word_embeddings_layernorm".into(),
        "final_norm.Layer" => "transformer.ln_f".into(),
        _ => {
            let (layer, module) = module.strip_prefix("blocks.")?.split_once('.')?;
            let module = match module {
                "attention.norm" => "input_layernorm",
                "attention.projections.qkv.Fused" => "self_attention.query_key_value",
                "attention.projections.output" => "self_attention.dense",
                "mlp_norm.Layer" => "post_attention_layernorm",
                "up" => "mlp.dense_h_to_4h",
                "down" => "mlp.dense_4h_to_h",
                _ => return None,
            };
            format!("transformer.h.{layer}.{module}")
        }
    };
    Some(format!("{module}.{parameter}"))
}

/// `q | k | v` in the order of BLOOM: for each head its query, key and value.
fn per_head<B: Backend>(fused: Tensor<B, 2>, sizes: &HuggingFaceConfig) -> Tensor<B, 2> {
    let attention = sizes.attention_config(0);
    let width = attention.hidden_size;
    let parts = [0, 1, 2].map(|part| fused.clone().narrow(0, part * width, width).unsqueeze_dim(0));
    QkvLayout::PerHead.merge(parts, width / attention.heads).squeeze_dim(0)
}
