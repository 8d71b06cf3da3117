//! The launches of a workload, on tensors of noise.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::kv_source::KvSource;
use burn_deepspeed_core::layout::{Orientation, RotaryLayout};
use burn_deepspeed_core::position::alibi;
use burn_deepspeed_core::qk_norm::QkNormKind;
use burn_deepspeed_kernels::cube::cache_write::{self, CacheWrite, HeadNorm, Rotation, Squares};
use burn_deepspeed_kernels::cube::gemv::{self, Gemv, Int8, Matrix, NormKind};
use burn_deepspeed_kernels::cube::pad_transform::PadTransform;
use burn_deepspeed_kernels::cube::prefill::mma;
use burn_deepspeed_kernels::cube::{
    Attention, Blocks, CacheTensor, Dequantise, Machine, MaskArguments, Rules, Softmax, TensorHandle, Unsupported,
    decode, dequantise, norm, pad_transform, prefill, softmax,
};
use cubecl::cuda::CudaRuntime;
use cubecl::prelude::*;
use half::{bf16, f16};

use crate::tensors::{copy, fill, upload};
use crate::workloads::{Addend, HALF, Problem, Weights, Workload};

type Tensor = TensorHandle<CudaRuntime>;
type Client = ComputeClient<CudaRuntime>;

/// One launch of an engine, by its place in [`Workload::engines`].
pub type Launch = Box<dyn Fn(usize) -> Result<(), Unsupported>>;

/// Total size of the tensors that cold launches rotate over: several times any L2 cache.
const COLD_BYTES: usize = 256 << 20;
const LARGEST_INT8: f32 = 127.0;

pub type Prefill = fn(&Client, &Machine, Attention<'_, CudaRuntime>) -> Result<(), Unsupported>;

/// The engines for prompts, by name.
pub const PREFILL: [(&str, Prefill); 2] = [("mma", tensor_cores), ("simt", prefill::simt::launch)];

fn tensor_cores(client: &Client, machine: &Machine, problem: Attention<'_, CudaRuntime>) -> Result<(), Unsupported> {
    let engine = mma::Engine::tensor_cores(client, machine, problem.query.dtype, problem.query.shape()[3])?;
    mma::launch(client, machine, problem, engine)
}

/// What the launches are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Times on a device.
    Timing,
    /// Showing that everything runs: small tensors.
    Trial,
    /// Counts: each is launched once, on a device that is slower than the host.
    Counting,
}

/// Makes tensors of noise, and the launches that own them.
pub struct Tensors {
    client: Client,
    machine: Machine,
    elements: StorageType,
    purpose: Use,
}

impl Tensors {
    pub fn new(client: &Client, machine: Machine, dtype: &str, purpose: Use) -> Result<Self, String> {
        let elements = match dtype {
            "bf16" => bf16::as_type_native_unchecked(),
            "f16" => f16::as_type_native_unchecked(),
            other => return Err(format!("no element type {other}: bf16 or f16")),
        };
        Ok(Self { client: client.clone(), machine, elements: elements.storage_type(), purpose })
    }

    /// Launches on separate tensors, enough of them that none finds its data in the L2 cache.
    pub fn prepare(&self, workload: &Workload) -> Vec<Launch> {
        let trial = self.purpose == Use::Trial;
        let sets = match (workload.problem, workload.bytes()) {
            (Problem::Empty | Problem::Prefill { .. }, _) => 1,
            _ if self.purpose == Use::Counting => 1,
            _ if trial => 2,
            // One more, since softmax counts its scores twice.
            (_, bytes) => (1 + COLD_BYTES.div_ceil(bytes)).min(256),
        };
        let problem = if trial { workload.problem.small() } else { workload.problem };
        (0..sets).map(|_| self.launch(problem)).collect()
    }

    fn noise(&self, shape: &[usize]) -> Tensor {
        self.noise_of(shape, self.elements)
    }

    fn floats(&self, shape: &[usize]) -> Tensor {
        self.noise_of(shape, f32::as_type_native_unchecked().storage_type())
    }

    /// A tensor as the runtime lays it out, its rows pitched.
    fn noise_of(&self, shape: &[usize], elements: StorageType) -> Tensor {
        self.noise_to(shape, elements, if elements.size() == 1 { LARGEST_INT8 } else { 1.0 })
    }

    /// The same, of noise between `-largest` and `largest`.
    fn noise_to(&self, shape: &[usize], elements: StorageType, largest: f32) -> Tensor {
        let tensor = Tensor::empty(&self.client, shape.to_vec(), elements);
        if self.purpose == Use::Counting {
            return upload(&self.client, tensor, largest);
        }
        fill(&self.client, &tensor, largest);
        tensor
    }

    /// The slopes of ALiBi.
    fn slopes(&self, heads: usize) -> Tensor {
        let slopes: Vec<u8> = alibi::slopes(heads).into_iter().flat_map(f32::to_le_bytes).collect();
        let handle = self.client.create_from_slice(&slopes);
        Tensor::new(handle, vec![heads], vec![1], f32::as_type_native_unchecked().storage_type())
    }

    /// Keys or values, and scales if they are int8: of numbers as large as those of a float cache.
    fn cache(&self, [batch, kv_heads, capacity, head]: [usize; 4], int8: bool) -> (Tensor, Option<Tensor>) {
        let elements = if int8 { i8::as_type_native_unchecked().storage_type() } else { self.elements };
        let floats = f32::as_type_native_unchecked().storage_type();
        let scales = int8.then(|| self.noise_to(&[batch, kv_heads, capacity], floats, 1.0 / LARGEST_INT8));
        (self.noise_of(&[batch, kv_heads, capacity, head], elements), scales)
    }

    /// The bytes of this many elements.
    fn blocks(&self, elements: usize, format: BlockFormat) -> Tensor {
        let bytes = elements / format.elements() * format.bytes();
        self.noise_of(&[bytes], i8::as_type_native_unchecked().storage_type())
    }

    /// The norm of Qwen 3.
    fn head_norm(&self, head: usize) -> HeadNorm<CudaRuntime> {
        HeadNorm {
            kind: QkNormKind::Rms,
            epsilon: 1e-6,
            plus_one: false,
            after_rotation: false,
            values: false,
            weights: Some([(); 2].map(|()| self.floats(&[1, head]))),
            sums: None,
        }
    }

    /// `[B, N, T, H]`, the heads of a token contiguous.
    fn packed(&self, [batch, heads, tokens, head]: [usize; 4]) -> Tensor {
        let width = heads * head;
        let packed = self.noise(&[batch, tokens, width]);
        let strides = vec![packed.strides()[0], head, packed.strides()[1], 1];
        Tensor::new(packed.handle, vec![batch, heads, tokens, head], strides, self.elements)
    }

    fn launch(&self, problem: Problem) -> Launch {
        let (client, machine) = (self.client.clone(), self.machine);
        match problem {
            Problem::Copy { megabytes } => {
                let shape = [megabytes << 20 >> 12, 4096 / HALF];
                let (from, to) = (self.noise(&shape), self.noise(&shape));
                Box::new(move |_| {
                    copy(&client, &from, &to);
                    Ok(())
                })
            }
            Problem::Empty => {
                let (from, to) = (self.noise(&[8]), self.noise(&[8]));
                Box::new(move |_| {
                    copy(&client, &from, &to);
                    Ok(())
                })
            }
            Problem::Decode { batch, heads, kv_heads, head, keys, int8 } => {
                let rules =
                    Rules { causal: true, window: None, softcap: None, start: keys as u32 - 1, end: keys as u32 };
                let [(key, key_scales), (value, value_scales)] =
                    [(); 2].map(|()| self.cache([batch, kv_heads, keys, head], int8));
                let operands = Operands {
                    query: self.noise(&[batch, heads, 1, head]),
                    key,
                    key_scales,
                    value,
                    value_scales,
                    context: self.packed([batch, heads, 1, head]),
                    masks: MaskArguments::new(rules),
                };
                Box::new(move |_| decode::launch(&client, &machine, operands.problem(), None).map(|_| ()))
            }
            Problem::Prefill { batch, heads, head, tokens, causal, addend, int8 } => {
                let rules = Rules { causal, window: None, softcap: None, start: 0, end: tokens as u32 };
                let mut masks = MaskArguments::new(rules);
                masks.slopes = (addend == Addend::Slopes).then(|| self.slopes(heads));
                masks.bias = (addend == Addend::Bias).then(|| self.noise(&[1, heads, tokens, tokens]));
                let [(key, key_scales), (value, value_scales)] =
                    [(); 2].map(|()| self.cache([batch, heads, tokens, head], int8));
                let operands = Operands {
                    query: self.noise(&[batch, heads, tokens, head]),
                    key,
                    key_scales,
                    value,
                    value_scales,
                    context: self.packed([batch, heads, tokens, head]),
                    masks,
                };
                Box::new(move |engine| PREFILL[engine].1(&client, &machine, operands.problem()))
            }
            Problem::Softmax { heads, tokens, masked, triangular } => {
                let scores = self.noise(&[1, heads, tokens, tokens]);
                let mask = masked.then(|| self.noise(&[1, 1, tokens, tokens]));
                Box::new(move |_| {
                    let arguments = Softmax {
                        scores: &scores,
                        scale: 0.125,
                        alibi: None,
                        head_offset: 0,
                        mask: mask.as_ref(),
                        triangular: triangular.then_some(0),
                        window: None,
                    };
                    softmax::launch(&client, &machine, arguments)
                })
            }
            Problem::CacheWrite { batch, tokens, heads, kv_heads, head, capacity, int8, norm } => {
                let qkv = self.noise(&[batch, tokens, (heads + 2 * kv_heads) * head]);
                let query = self.noise(&[batch, heads, tokens, head]);
                let [(key, key_scales), (value, value_scales)] =
                    [(); 2].map(|()| self.cache([batch, kv_heads, capacity, head], int8));
                let [cos, sin] = [(); 2].map(|()| self.floats(&[1, tokens, head / 2]));
                let rotation = Rotation { layout: RotaryLayout::Half, cos, sin };
                let norm = norm.then(|| self.head_norm(head));
                Box::new(move |_| {
                    let arguments = CacheWrite {
                        qkv: &qkv,
                        source: KvSource::Own,
                        query: &query,
                        key: CacheTensor { elements: &key, scales: key_scales.as_ref() },
                        value: CacheTensor { elements: &value, scales: value_scales.as_ref() },
                        norm: norm.as_ref(),
                        rotation: Some(&rotation),
                        factors: None,
                        bounds: None,
                        start: (capacity - tokens) as u32,
                        end: capacity as u32,
                    };
                    cache_write::launch(&client, &machine, arguments)
                })
            }
            Problem::Squares { batch, tokens, heads, kv_heads, head } => {
                let qkv = self.noise(&[batch, tokens, (heads + 2 * kv_heads) * head]);
                let sums = self.floats(&[batch, tokens, 2]);
                Box::new(move |_| {
                    let arguments = Squares { qkv: &qkv, features: [heads * head, kv_heads * head], sums: &sums };
                    cache_write::launch_squares(&client, &machine, arguments)
                })
            }
            Problem::Pad { batch, heads, tokens, head, size } => {
                let (from, to) = (self.noise(&[batch, heads, tokens, head]), self.noise(&[batch, heads, tokens, size]));
                Box::new(move |_| pad_transform::launch(&client, &machine, PadTransform { heads: &from, padded: &to }))
            }
            Problem::Norm { rows, features, rms } => {
                let [input, output] = [(); 2].map(|()| self.noise(&[rows, features]));
                let [gamma, beta] = [(); 2].map(|()| self.noise(&[features]));
                Box::new(move |_| {
                    let arguments = norm::Norm {
                        input: &input,
                        residual: None,
                        gamma: &gamma,
                        beta: (!rms).then_some(&beta),
                        output: &output,
                        epsilon: 1e-5,
                        rms,
                    };
                    norm::launch(&client, &machine, arguments)
                })
            }
            Problem::Gemv { rows, inputs, outputs, normed, weights } => {
                let (input, output) = (self.noise(&[rows, inputs]), self.noise(&[rows, outputs]));
                let bias = self.noise(&[outputs]);
                let [gamma, beta] = [(); 2].map(|()| self.noise(&[inputs]));
                let elements = match weights {
                    Weights::Dense(Orientation::OutputInput) => self.noise(&[outputs, inputs]),
                    Weights::Dense(Orientation::InputOutput) => self.noise(&[inputs, outputs]),
                    Weights::Int8 => self.noise_of(&[outputs, inputs], i8::as_type_native_unchecked().storage_type()),
                    Weights::Blocks(format) => self.blocks(outputs * inputs, format),
                };
                let scales = self.floats(&[outputs, 1]);
                Box::new(move |_| {
                    let kind = NormKind::LayerNorm;
                    let norm = gemv::Norm { kind, gamma: &gamma, beta: Some(&beta), epsilon: 1e-5 };
                    let matrix = match weights {
                        Weights::Dense(orientation) => Matrix::Dense(&elements, orientation),
                        Weights::Int8 => {
                            Matrix::Int8(Int8 { elements: &elements, scales: &scales, blocks: [1, inputs] })
                        }
                        Weights::Blocks(format) => {
                            Matrix::Blocks(Blocks { bytes: &elements, first: 0, format, shape: [outputs, inputs] })
                        }
                    };
                    let arguments = Gemv {
                        input: &input,
                        norm: normed.then_some(norm),
                        matrix,
                        bias: Some(&bias),
                        output: &output,
                        offset: 0,
                        normed: None,
                    };
                    gemv::launch(&client, &machine, arguments)
                })
            }
            Problem::Dequantise { inputs, outputs, format } => {
                let (bytes, dense) = (self.blocks(outputs * inputs, format), self.noise(&[outputs, inputs]));
                Box::new(move |_| {
                    let blocks = Blocks { bytes: &bytes, first: 0, format, shape: [outputs, inputs] };
                    dequantise::launch(&client, &machine, Dequantise { blocks, dense: &dense, row: 0 })
                })
            }
        }
    }
}

/// What an [`Attention`] borrows.
struct Operands {
    query: Tensor,
    key: Tensor,
    key_scales: Option<Tensor>,
    value: Tensor,
    value_scales: Option<Tensor>,
    context: Tensor,
    masks: MaskArguments<CudaRuntime>,
}

impl Operands {
    fn problem(&self) -> Attention<'_, CudaRuntime> {
        Attention {
            query: &self.query,
            key: CacheTensor { elements: &self.key, scales: self.key_scales.as_ref() },
            value: CacheTensor { elements: &self.value, scales: self.value_scales.as_ref() },
            context: &self.context,
            scale: 1.0 / (self.query.shape()[3] as f32).sqrt(),
            sinks: None,
            masks: &self.masks,
            keys: self.key.shape()[2],
        }
    }
}
