//! A projection after the pooling; `Dense` of `sentence-transformers`.

use std::path::Path;

use burn::tensor::activation::{relu, sigmoid, silu};
use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::element::OfBackend;
use burn_deepspeed::fields::Fields;
use burn_deepspeed::load::{Checkpoint, ParameterReader, WeightNames, WeightPart};
use burn_deepspeed::weight::{Orientation, Weight};
use burn_deepspeed::{ConfigError, DataType, InferenceBackend, Operations};

use crate::Failure;

/// Keys that are read.
const READ: &[&str] = &[
    "activation_function",
    "bias",
    "in_features",
    "module_input_name",
    "module_output_name",
    "out_features",
    "use_residual",
];

/// A projection, an activation, and the input added if the module has a residual.
#[derive(Debug)]
pub struct Dense<B: Backend> {
    linear: Weight<B>,
    activation: Activation,
    residual: Residual<B>,
}

#[derive(Debug)]
enum Residual<B: Backend> {
    None,
    Input,
    Projected(Box<Weight<B>>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Activation {
    Identity,
    Tanh,
    Relu,
    Gelu,
    Sigmoid,
    Silu,
}

impl Activation {
    /// By the last part of the path of the class in PyTorch.
    const NAMES: [(&str, Self); 6] = [
        ("Identity", Self::Identity),
        ("Tanh", Self::Tanh),
        ("ReLU", Self::Relu),
        ("GELU", Self::Gelu),
        ("Sigmoid", Self::Sigmoid),
        ("SiLU", Self::Silu),
    ];

    fn read(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        const KEY: &str = "activation_function";
        let Some(path) = fields.text(&[KEY])? else { return Ok(Self::Tanh) };
        let name = path.strip_prefix("torch.").and_then(|path| path.rsplit('.').next());
        let known = Self::NAMES.iter().find(|(known, _)| Some(*known) == name);
        known.map(|(_, activation)| *activation).ok_or_else(|| {
            fields.unsupported(KEY, "Identity, Tanh, ReLU, GELU, Sigmoid and SiLU of `torch.nn.modules`")
        })
    }
}

impl<B: InferenceBackend> Dense<B> {
    /// Reads a folder such as `2_Dense`, for vectors of `width` features. Returns the width of the result, too.
    ///
    /// # Errors
    /// An error that names the file and the key or the tensor.
    pub fn open(folder: &Path, width: usize, allowed: &[String], device: &B::Device) -> Result<(Self, usize), Failure> {
        let file = folder.join("config.json");
        let record = super::json(&file)?.ok_or_else(|| format!("{} is missing", file.display()))?;
        let settings = Settings::read(&Fields::new(&record)?.allowing(allowed), width);
        let settings = settings.map_err(|error| error.in_file(&file))?;
        let checkpoint = Checkpoint::open(folder)?;
        let dtype = DataType::Fp32.of_backend::<B>(device)?;
        let reader = ParameterReader::<B>::new(&checkpoint, dtype, device);
        let projection = |name: &str, bias: bool| {
            let (shape, layout) = ([settings.outputs, width], Orientation::OutputInput);
            // Before memory is allocated for a size that only the file states.
            checkpoint.check_shape(&format!("{name}.weight"), &shape)?;
            let empty = Weight::init(width, settings.outputs, bias, layout, dtype, device);
            reader.projection(&empty, &WeightNames::of(name), layout, &WeightPart::Whole)
        };
        let linear = projection("linear", settings.bias)?;
        let residual = match (settings.residual, settings.outputs == width) {
            (false, _) => Residual::None,
            (true, true) => Residual::Input,
            (true, false) => Residual::Projected(Box::new(projection("residual", false)?)),
        };
        checkpoint.finish()?;
        Ok((Self { linear, activation: settings.activation, residual }, settings.outputs))
    }

    /// # Shapes
    /// - input: `[B, in]`, output: `[B, out]`
    pub fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let input: Tensor<B, 3> = input.unsqueeze_dim(1);
        let linear = B::Ops::linear(input.clone(), &self.linear);
        let active = match self.activation {
            Activation::Identity => linear,
            Activation::Tanh => linear.tanh(),
            Activation::Relu => relu(linear),
            Activation::Gelu => B::Ops::gelu(linear),
            Activation::Sigmoid => sigmoid(linear),
            Activation::Silu => silu(linear),
        };
        let output = match &self.residual {
            Residual::None => active,
            Residual::Input => active + input,
            Residual::Projected(weight) => active + B::Ops::linear(input, weight),
        };
        output.squeeze_dim(1)
    }
}

/// The settings of a module.
struct Settings {
    outputs: usize,
    bias: bool,
    residual: bool,
    activation: Activation,
}

impl Settings {
    fn read(fields: &Fields<'_>, width: usize) -> Result<Self, ConfigError> {
        fields.check_keys(READ, "a Dense module")?;
        for key in ["module_input_name", "module_output_name"] {
            if fields.text(&[key])?.is_some_and(|name| name != "sentence_embedding") {
                return Err(fields.unsupported(key, "\"sentence_embedding\""));
            }
        }
        if fields.size(&["in_features"])? != Some(width) {
            return Err(fields.unsupported("in_features", &format!("{width}, the width of the vectors before it")));
        }
        let outputs = fields.size(&["out_features"])?.filter(|&outputs| outputs > 0);
        Ok(Self {
            outputs: outputs.ok_or_else(|| fields.wrong("out_features", "a number of at least 1"))?,
            bias: fields.flag(&["bias"])?.unwrap_or(true),
            residual: fields.flag(&["use_residual"])?.unwrap_or(false),
            activation: Activation::read(fields)?,
        })
    }
}
