//! Reads experts from a checkpoint.

use std::collections::BTreeSet;
use std::ops::Range;

use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::load::families::{ExpertSizes, ExpertWeights, GroupScores, GroupedRouting, Routing, SharedExpert};
use burn_deepspeed::load::{Checkpoint, HuggingFaceConfig, ParameterReader, ReadTensors, WeightNames, WeightPart};
use burn_deepspeed::weight::{BlockFormat, Int8Blocks, Orientation, Weight, transposed};
use burn_deepspeed::{OfBackend, WeightError};

use super::{Experts, GatedMlp, Shared, score_type};

/// The layer of a checkpoint that holds the experts.
struct Layer<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    reader: &'a ParameterReader<'a, B>,
    /// The path of the layer.
    path: String,
    dtype: DType,
    device: &'a B::Device,
}

/// Where an expert is in a tensor of all experts.
#[derive(Debug, Clone, Copy)]
struct Place {
    expert: usize,
    count: usize,
}

impl<B: Backend> Experts<B> {
    /// The experts of layer `layer` with the weights of a checkpoint.
    pub fn load(
        self,
        (config, layer): (&HuggingFaceConfig, usize),
        (checkpoint, reader): (&Checkpoint, &ParameterReader<'_, B>),
        device: &B::Device,
    ) -> Result<Self, WeightError> {
        let Some((record, sizes)) = config.experts(layer) else { return Ok(self) };
        let attention = config.attention_config(layer);
        let (dtype, ranks) = (attention.dtype.of_backend::<B>(device)?, attention.rank_group()?);
        let path = config.layer_path(checkpoint, layer);
        let source = Layer { checkpoint, reader, path, dtype, device };
        let own = ranks.part(sizes.count);
        source.ignore_others(&record.weights, sizes, &own);
        let experts = own.zip(self.experts).map(|(expert, module)| match record.weights {
            ExpertWeights::Separate(path, names) => {
                let [gate, up, down] = names.map(|name| format!("{path}.{expert}.{name}"));
                source.gated(module, [&gate, &up, &down], [&WeightPart::Whole, &WeightPart::Whole])
            }
            ExpertWeights::Packed { gate_up, down, .. } => {
                let place = Place { expert, count: sizes.count };
                let up = source.packed(&module.up, gate_up, place)?;
                Ok(GatedMlp { gate: None, up, down: source.packed(&module.down, down, place)? })
            }
        });
        let experts = experts.collect::<Result<_, WeightError>>()?;
        let shared = match (self.shared, record.shared, sizes.shared) {
            (Some(module), Some(names), Some(size)) => Some(source.shared(module, &names, (ranks.part(size), size))?),
            (module, ..) => module,
        };
        let exact = ParameterReader::new(checkpoint, score_type(record.routing, dtype), device);
        let source = Layer { reader: &exact, ..source };
        let router = source.projection(&self.router, record.router, &WeightPart::Whole)?;
        let correction = match record.routing {
            Routing::Grouped(GroupedRouting { scores: GroupScores::Sigmoid { correction, .. }, .. }) => {
                let terms = checkpoint.tensor(&source.at(correction), [sizes.count], DType::F32, device)?;
                Some(Param::from_tensor(terms))
            }
            _ => None,
        };
        Ok(Self { router, correction, experts, shared, ..self })
    }
}

impl<B: Backend> Layer<'_, B> {
    fn at(&self, path: &str) -> String {
        format!("{}.{path}", self.path)
    }

    fn projection(&self, module: &Weight<B>, path: &str, part: &WeightPart) -> Result<Weight<B>, WeightError> {
        self.reader.projection(module, &WeightNames::of(&self.at(path)), Orientation::OutputInput, part)
    }

    /// An MLP of three matrices: gate, up, down. `parts` are those of the first two, and of the last.
    fn gated(
        &self,
        module: GatedMlp<B>,
        [gate, up, down]: [&str; 3],
        [outputs, inputs]: [&WeightPart; 2],
    ) -> Result<GatedMlp<B>, WeightError> {
        Ok(GatedMlp {
            gate: module.gate.map(|module| self.projection(&module, gate, outputs)).transpose()?,
            up: self.projection(&module.up, up, outputs)?,
            down: self.projection(&module.down, down, inputs)?,
        })
    }

    fn shared(
        &self,
        module: Shared<B>,
        names: &SharedExpert,
        (own, all): (Range<usize>, usize),
    ) -> Result<Shared<B>, WeightError> {
        let parts = [&WeightPart::Outputs { own: own.clone(), all }, &WeightPart::Inputs { own, all }];
        let mlp = self.gated(module.mlp, [names.gate, names.up, names.down], parts)?;
        let scale = module.scale.zip(names.scale);
        let scale = scale.map(|(scale, path)| self.projection(&scale, path, &WeightPart::Whole)).transpose()?;
        Ok(Shared { mlp, scale })
    }

    /// The matrix of one expert in a tensor `[experts, in, out]`, and its bias in one `[experts, out]`.
    fn packed(&self, module: &Weight<B>, path: &str, place: Place) -> Result<Weight<B>, WeightError> {
        let (path, Place { expert, count }) = (self.at(path), place);
        let [input, output] = [module.input_size(), module.output_size()];
        let (shape, expert) = ([count, input, output], expert..expert + 1);
        let matrix: Tensor<B, 3> =
            self.checkpoint.slice(&path, shape, [expert.clone(), 0..input, 0..output], self.dtype, self.device)?;
        let bias = || {
            let bias: Tensor<B, 2> = self.checkpoint.slice(
                &format!("{path}_bias"),
                [count, output],
                [expert.clone(), 0..output],
                self.dtype,
                self.device,
            )?;
            Ok::<_, WeightError>(bias.reshape([output]))
        };
        let bias = module.has_bias().then(bias).transpose()?;
        let matrix = matrix.reshape([input, output]);
        if module.int8().is_some() {
            return Weight::new(matrix, bias, Orientation::InputOutput).quantize(Int8Blocks::PerOutput);
        }
        if let Some(blocks) = module.blocks() {
            let format = blocks.wanted().unwrap_or(BlockFormat::F32);
            return Weight::new(matrix, bias, Orientation::InputOutput).quantize_blocks(format);
        }
        Ok(match module.orientation() {
            Orientation::InputOutput => Weight::new(matrix, bias, Orientation::InputOutput),
            Orientation::OutputInput => Weight::new(transposed(matrix), bias, Orientation::OutputInput),
        })
    }

    /// Marks the experts of other ranks as not needed here.
    fn ignore_others(&self, weights: &ExpertWeights, sizes: &ExpertSizes, own: &Range<usize>) {
        let others: BTreeSet<String> = match *weights {
            ExpertWeights::Separate(path, names) => {
                let others = (0..sizes.count).filter(|expert| !own.contains(expert));
                let names = |expert| names.map(|name| self.at(&format!("{path}.{expert}.{name}.weight")));
                others.flat_map(names).collect()
            }
            // Each of the tensors is read by a rank that has an expert.
            ExpertWeights::Packed { gate_up, down, .. } if own.is_empty() => {
                let names = |path| [self.at(path), format!("{}_bias", self.at(path))];
                [gate_up, down].into_iter().flat_map(names).collect()
            }
            ExpertWeights::Packed { .. } => BTreeSet::new(),
        };
        if !others.is_empty() {
            self.checkpoint.ignore(|name| others.contains(name));
        }
    }
}
