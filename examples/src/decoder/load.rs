//! Reads a Hugging Face checkpoint into the decoder: on several ranks, each its part of it.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn_deepspeed::WeightError;
use burn_deepspeed::element::OfBackend;
use burn_deepspeed::load::families::Gate;
use burn_deepspeed::load::{
    Checkpoint, HuggingFaceConfig, LoadReport, ParameterReader, ReadTensors, WeightNames, WeightPart,
};
use burn_deepspeed::weight::{Int8Blocks, Orientation, Weight};

use super::Decoder;
use super::parts::{Norm, paths};

impl<B: Backend> Decoder<B> {
    /// The model with the weights of a checkpoint. An error names every tensor that has no place in the model.
    pub fn load(
        mut self,
        config: &HuggingFaceConfig,
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<(Self, LoadReport), WeightError> {
        config.ignore_buffers(checkpoint);
        let (paths, orientation) = (paths(config)?, config.layer().orientation);
        let attention = config.attention_config(0);
        let dtype = attention.dtype.of_backend::<B>(device)?;
        let reader = ParameterReader::<B>::new(checkpoint, dtype, device);
        let prefix = config.prefix(checkpoint);
        let at = |path: &str| format!("{prefix}{path}");
        let table = |path: &str| format!("{prefix}{path}.weight");

        let tokens = WeightNames::of(&at(paths.tokens));
        self.tokens = reader.projection(&self.tokens, &tokens, Orientation::OutputInput, &WeightPart::Whole)?;
        if let (Some(module), Some(positions)) = (self.positions.take(), config.family.positions) {
            self.positions = Some(reader.embedding(module, &table(positions.path))?);
        }
        if let (Some(norm), Some(path)) = (self.embedding_norm.take(), paths.embedding_norm) {
            self.embedding_norm = Some(reader.layer_norm(norm, &config.layer().norm_names(&at(path)))?);
        }
        self.final_norm = self.final_norm.read(&reader, &config.layer().norm_names(&at(paths.final_norm)))?;

        self.layer_inputs = match (self.layer_inputs, &paths.layer_inputs) {
            (Some(inputs), Some(paths)) => Some(inputs.load(config, paths, &reader, at)?),
            (inputs, _) => inputs,
        };
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (layer, mut block) in self.blocks.into_iter().enumerate() {
            let all = config.mlp_size_of(layer);
            let own = attention.rank_group()?.part(all);
            // The file may state any width; the tensor is compared with it.
            let both = all.saturating_mul(2);
            let outputs = |first: usize, all| {
                let [start, end] = [own.start, own.end].map(|output| output.saturating_add(first));
                WeightPart::Outputs { own: start..end, all }
            };
            // Where one matrix has both, the gate comes first.
            let (gate_part, up_part) = match paths.gate {
                Gate::WithUp => (outputs(0, both), outputs(all, both)),
                Gate::None | Gate::At(_) => (outputs(0, all), outputs(0, all)),
            };
            let outer = WeightPart::Inputs { own: own.clone(), all };
            let layer_path = config.layer_path(checkpoint, layer);
            let at = |path: &str| format!("{layer_path}.{path}");
            let projection = |module: &Weight<B>, path: &str, part: &WeightPart| {
                reader.projection(module, &WeightNames::of(&at(path)), orientation, part)
            };
            let norm = |norm: Option<Norm<B>>, path: Option<&str>| match (norm, path) {
                (Some(norm), Some(path)) => norm.read(&reader, &config.layer().norm_names(&at(path))).map(Some),
                (norm, _) => Ok(norm),
            };
            let names = config.attention_names(checkpoint, layer);
            block.attention = block.attention.map(|attention| attention.load(checkpoint, &names)).transpose()?;
            block.latent = match (block.latent, config.latent_names(checkpoint, layer)) {
                (Some(latent), Some(names)) => Some(latent.load(checkpoint, &names)?),
                (latent, _) => latent,
            };
            block.attention_output_norm = norm(block.attention_output_norm, paths.attention_output_norm)?;
            block.mlp_norm = norm(block.mlp_norm, paths.mlp_norm)?;
            block.mlp_output_norm = norm(block.mlp_output_norm, paths.mlp_output_norm)?;
            block.gate = match (block.gate, paths.gate) {
                (Some(gate), Gate::At(path)) => Some(projection(&gate, path, &gate_part)?),
                (Some(gate), Gate::WithUp) => Some(projection(&gate, paths.up, &gate_part)?),
                (gate, _) => gate,
            };
            block.up = block.up.map(|up| projection(&up, paths.up, &up_part)).transpose()?;
            block.down = block.down.map(|down| projection(&down, paths.down, &outer)).transpose()?;
            block.experts = match block.experts {
                Some(experts) => Some(experts.load((config, layer), (checkpoint, &reader), device)?),
                None => None,
            };
            block.layer_input = match (block.layer_input, &paths.layer_inputs) {
                (Some(input), Some(paths)) => Some(input.load(config, paths, &reader, at)?),
                (input, _) => input,
            };
            if let (Some(_), Some(path)) = (&block.layer_factor, paths.layer_factor) {
                let factor = checkpoint.tensor(&at(path), [1], dtype, device)?;
                block.layer_factor = Some(Param::from_tensor(factor));
            }
            blocks.push(block);
        }
        self.blocks = blocks;

        let head = config.head_path().unwrap_or_else(|| paths.head.into());
        let untied = checkpoint.contains(&format!("{head}.weight")) || !config.tie_word_embeddings;
        self.head = match untied {
            true => {
                reader.projection(&self.head, &WeightNames::of(&head), Orientation::OutputInput, &WeightPart::Whole)?
            }
            false => tied(&self.head, &self.tokens)?,
        };
        let report = checkpoint.finish()?;
        Ok((self.no_grad(), report))
    }
}

/// The head of a model whose output embedding is its input embedding. They share the matrix, unless the head is int8.
fn tied<B: Backend>(head: &Weight<B>, tokens: &Weight<B>) -> Result<Weight<B>, WeightError> {
    match (head.int8(), tokens.is_dense()) {
        (Some(_), _) => tokens.clone().quantize(Int8Blocks::PerOutput),
        // A parameter of its own, which shares the memory.
        (None, true) => Ok(Weight::new(tokens.matrix(), None, tokens.orientation())),
        (None, false) => Ok(tokens.clone()),
    }
}
