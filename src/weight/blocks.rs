//! A matrix of blocks, as a file stores it.

use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed_core::block::{BlockFormat, BlockRows, RowFormats, UNIT_BYTES};

use super::elements::Elements;
use super::param::{INITIAL_DEVIATION, lazy};
use super::rows;
use crate::element::require_int8;
use crate::error::{ConfigError, WeightError};

/// A matrix `[out, in]` whose rows are in [blocks](BlockFormat). Rows may differ in their format: in a fused projection of a GGUF file
/// the values often have more bits than the queries.
///
/// The CPU kernels, and the CubeCL kernel for a few rows, multiply blocks as they are. For more rows a part of the outputs becomes dense at a
/// time on a CubeCL device, and in the reference on the host.
#[derive(Module, Debug)]
pub struct BlockMatrix<B: Backend> {
    elements: Elements<B, 1, RowFormats>,
    /// One float. Burn 0.21 takes an `Option` of a module without floats for a constant, and loads no record into it.
    float: Param<Tensor<B, 1>>,
    #[module(skip)]
    wanted: Option<BlockFormat>,
    #[module(skip)]
    dtype: DType,
}

impl<B: Backend> BlockMatrix<B> {
    /// Rounds a dense matrix, `[out, in]`, to blocks.
    ///
    /// # Errors
    /// [`WeightError::NotFinite`]; [`ConfigError::BlocksDoNotDivide`]; [`ConfigError::UnsupportedDataType`] if the backend does not store
    /// bytes; [`ConfigError::Unsupported`] for a format that [cannot be written](BlockFormat::can_quantise).
    pub fn quantize(matrix: Tensor<B, 2>, format: BlockFormat) -> Result<Self, WeightError> {
        let ([outputs, inputs], dtype, device) = (matrix.dims(), matrix.dtype(), matrix.device());
        check::<B>(Some(format), inputs, &device)?;
        let values = rows::finite(matrix)?;
        let rows = BlockRows::quantise(&values, [outputs, inputs], format).ok_or(divide(format, inputs))?;
        Ok(Self::from_rows(rows, Some(format), dtype, &device)?)
    }

    /// A matrix of these rows. Products and the dense matrix have elements of `dtype`. Of a file that is loaded into it, floats are
    /// rounded to `wanted`.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`] if the backend does not store bytes.
    ///
    /// # Panics
    /// If the bytes are not those of the rows.
    pub(crate) fn from_rows(
        BlockRows { formats, bytes }: BlockRows,
        wanted: Option<BlockFormat>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        require_int8::<B>(device)?;
        assert!(bytes.len() == formats.bytes(), "BlockMatrix: {} bytes for {}", bytes.len(), formats.bytes());
        Ok(Self::new(of_bytes(bytes, device), formats, wanted, dtype))
    }

    fn new(bytes: Tensor<B, 1, Int>, formats: RowFormats, wanted: Option<BlockFormat>, dtype: DType) -> Self {
        let float = one_float(&bytes.device());
        let elements = Elements::given(bytes, formats);
        Self { elements, float, wanted, dtype }
    }

    /// A fresh matrix of this shape, in the wanted format or f32, distributed like a dense one. Memory is allocated when it is first
    /// read.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize) that concern the format.
    pub(super) fn init(
        shape: [usize; 2],
        wanted: Option<BlockFormat>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        check::<B>(wanted, shape[1], device)?;
        let format = wanted.unwrap_or(BlockFormat::F32);
        let formats = RowFormats::uniform(format, shape).ok_or(divide(format, shape[1]))?;
        let len = formats.bytes_in_memory().ok_or(divide(format, shape[1]))?;
        let elements = Elements::lazy([len], device, formats, move |device| drawn(shape, format, device));
        Ok(Self { elements, float: one_float(device), wanted, dtype })
    }

    /// The bytes of all rows, of type [`DType::I8`], up to a multiple of [`UNIT_BYTES`].
    pub fn bytes(&self) -> Tensor<B, 1, Int> {
        self.elements.values()
    }

    /// The rows on the host, without what fills the last unit.
    pub(crate) fn to_rows(&self) -> BlockRows {
        let (formats, data) = (self.formats().clone(), self.bytes().into_data().convert_dtype(DType::I8));
        let bytes = data.bytes[..formats.bytes()].to_vec();
        BlockRows { formats, bytes }
    }

    /// The formats of the rows, and where each is in the bytes.
    pub fn formats(&self) -> &RowFormats {
        self.elements.form()
    }

    /// The format that floats of a file are rounded to; `None` if every row stays as it is stored.
    pub fn wanted(&self) -> Option<BlockFormat> {
        self.wanted
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.formats().outputs(), self.formats().inputs()]
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn device(&self) -> B::Device {
        self.elements.device()
    }

    /// The dense matrix, `[out, in]`, in the element type of products.
    pub fn dense(&self) -> Tensor<B, 2> {
        self.dense_outputs(0, self.shape()[0]).cast(self.dtype)
    }

    /// The outputs `start..start + len` of the dense matrix, `[len, in]`, in f32.
    pub(super) fn dense_outputs(&self, start: usize, len: usize) -> Tensor<B, 2> {
        self.dense_parts(vec![self.narrow(start, len)])
    }

    /// Some outputs of the dense matrix, in this order, `[outputs, in]`, in f32. The device is asked for all of their bytes at once.
    ///
    /// # Panics
    /// If there are none.
    pub(super) fn dense_rows(&self, outputs: &[usize]) -> Tensor<B, 2> {
        self.dense_parts(outputs.iter().map(|output| self.narrow(*output, 1)).collect())
    }

    /// The outputs `start..start + len`.
    pub(super) fn outputs(&self, start: usize, len: usize) -> Self {
        let (formats, bytes) = self.narrow(start, len);
        Self::new(bytes, formats, self.wanted, self.dtype)
    }

    /// The formats and bytes of some outputs, one after another, in f32.
    fn dense_parts(&self, parts: Vec<(RowFormats, Tensor<B, 1, Int>)>) -> Tensor<B, 2> {
        let [_, inputs] = self.shape();
        let (formats, bytes): (Vec<RowFormats>, Vec<Tensor<B, 1, Int>>) = parts.into_iter().unzip();
        let lens: Vec<usize> = bytes.iter().map(|bytes| bytes.dims()[0]).collect();
        let data = Tensor::cat(bytes, 0).into_data().convert_dtype(DType::I8);
        let outputs = formats.iter().map(RowFormats::outputs).sum();
        let mut values = vec![0.0; outputs * inputs];
        let (mut rest, mut first) = (&mut values[..], 0);
        for (formats, len) in formats.iter().zip(lens) {
            let bytes = &data.bytes[first..first + len];
            for part in formats.parts() {
                let places = rest.split_off_mut(..part.outputs.len() * inputs).unwrap_or_default();
                part.format.dequantise(&bytes[part.bytes], places);
            }
            first += len;
        }
        Tensor::from_data(TensorData::new(values, [outputs, inputs]), (&self.device(), DType::F32))
    }

    /// The formats and bytes of the outputs `start..start + len`: up to a whole unit, with the first bytes of the next row, or zeros where there are
    /// too few.
    fn narrow(&self, start: usize, len: usize) -> (RowFormats, Tensor<B, 1, Int>) {
        let (formats, bytes) = self.formats().narrow(start..start + len);
        let (all, len) = (self.bytes(), bytes.len().next_multiple_of(UNIT_BYTES));
        let there = len.min(all.dims()[0] - bytes.start);
        let own = all.narrow(0, bytes.start, there);
        let own = match len - there {
            0 => own,
            missing => Tensor::cat(vec![own, Tensor::zeros([missing], (&self.device(), DType::I8))], 0),
        };
        (formats, own)
    }
}

fn one_float<B: Backend>(device: &B::Device) -> Param<Tensor<B, 1>> {
    lazy([1], DType::F32, device, |device| Tensor::ones([1], (device, DType::F32))).set_require_grad(false)
}

/// Bytes of rows, and zeros up to a whole unit.
fn of_bytes<B: Backend>(mut bytes: Vec<u8>, device: &B::Device) -> Tensor<B, 1, Int> {
    bytes.resize(bytes.len().next_multiple_of(UNIT_BYTES), 0);
    let len = bytes.len();
    // In place, and so is the tensor: a vector of `u8` would be copied for its alignment.
    let bytes: Vec<i8> = bytes.into_iter().map(|byte| byte as i8).collect();
    Tensor::from_data(TensorData::new(bytes, [len]), (device, DType::I8))
}

/// An error unless rows of `inputs` elements can be written in the format, and stored.
fn check<B: Backend>(wanted: Option<BlockFormat>, inputs: usize, device: &B::Device) -> Result<(), ConfigError> {
    require_int8::<B>(device)?;
    let Some(format) = wanted else { return Ok(()) };
    if !format.can_quantise() {
        let (key, value) = ("matrix_format".into(), String::from(format));
        let supported = "formats of blocks of 32 elements; those of 256 are read from files".into();
        return Err(ConfigError::Unsupported { key, value, supported });
    }
    format.row_bytes(inputs).map(|_| ()).ok_or(divide(format, inputs))
}

fn divide(format: BlockFormat, inputs: usize) -> ConfigError {
    ConfigError::BlocksDoNotDivide { format, elements: format.elements(), inputs }
}

/// Normally distributed elements, drawn and rounded in batches of rows.
fn drawn<B: Backend>([outputs, inputs]: [usize; 2], format: BlockFormat, device: &B::Device) -> Tensor<B, 1, Int> {
    let mut bytes = Vec::with_capacity(outputs * (inputs / format.elements()) * format.bytes());
    rows::draw::<B>([outputs, inputs], INITIAL_DEVIATION, device, |values| bytes.extend(format.quantise(&values)));
    of_bytes(bytes, device)
}
