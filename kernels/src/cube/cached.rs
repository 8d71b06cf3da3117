//! Keys or values of a cache: floats, or int8 with a scale for each head of a token.
//!
//! The scale of a head is its largest magnitude over 127. An element is its feature divided by the scale, rounded to the
//! nearest integer, ties to even. A head that holds a value that is not finite has a scale of NaN and elements of 0, so that
//! every reader sees a NaN.

use burn_deepspeed_core::int8::LARGEST;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::bytes::{BYTES, Reading, ZERO, integers};
use super::contract::{Checked, Contract, f32_type, i8_type, same_type};
use super::machine::Unsupported;
use super::tensors::{HeadStrides, HeadStridesLaunch, array, head_strides};

/// The bits of infinity: those of larger magnitudes are NaN's.
const INFINITE: u32 = 0x7f80_0000;
/// The bits of a NaN.
const NAN: u32 = 0x7fc0_0000;
/// `1.5 · 2^23`: a sum with it is rounded to an integer, ties to even, and its last 8 bits are those of the integer.
const INTEGERS: f32 = 12_582_912.0;
/// 1/127, in two parts.
const INVERSE: [f32; 2] = [1.0 / LARGEST, (1.0 / LARGEST as f64 - (1.0 / LARGEST) as f64) as f32];
/// The bits of 2^-90 and of 2^100: inverses of other magnitudes are not exact in two parts.
const EXACT: [u32; 2] = [(127 - 90) << 23, (127 + 100) << 23];
/// How near to 0 the last bits of a scale are too near: twice what [`Divisor::new`] says.
const NEAR: u32 = 32;

/// Keys or values of a cache.
#[derive(Debug)]
pub struct CacheTensor<'a, R: Runtime> {
    /// `[B, K, capacity, H]`, with any strides but along the last axis, which is contiguous.
    pub elements: &'a TensorHandle<R>,
    /// `[B, K, capacity]` of f32, if the elements are int8.
    pub scales: Option<&'a TensorHandle<R>>,
}

impl<R: Runtime> Clone for CacheTensor<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Runtime> Copy for CacheTensor<'_, R> {}

impl<'a, R: Runtime> CacheTensor<'a, R> {
    /// Keys or values in floats.
    pub fn floats(elements: &'a TensorHandle<R>) -> Self {
        Self { elements, scales: None }
    }

    /// Keys or values in int8, and their scales.
    pub fn int8(elements: &'a TensorHandle<R>, scales: &'a TensorHandle<R>) -> Self {
        Self { elements, scales: Some(scales) }
    }

    /// Checks that the elements have this shape and the type `floats`, or int8 where there are scales. `names` are those of
    /// the elements and of the scales.
    #[track_caller]
    pub(crate) fn check(
        &self,
        contract: &Contract<'_, R>,
        names: [&'static str; 2],
        shape: [usize; 4],
        floats: StorageType,
    ) -> Result<CheckedCache<'a, R>, Unsupported> {
        let elements = contract.rows(names[0], self.elements, &shape)?;
        let Some(scales) = self.scales else {
            same_type(names[0], self.elements, floats)?;
            return Ok(CheckedCache { elements, scales: None });
        };
        let scales = contract.exact(names[1], scales, &shape[..3])?;
        same_type(names[0], &elements, i8_type())?;
        same_type(names[1], &scales, f32_type())?;
        contract.supports(&[i8_type()])?;
        Ok(CheckedCache { elements, scales: Some(scales) })
    }
}

/// Keys or values that were checked.
#[derive(Debug)]
pub(crate) struct CheckedCache<'a, R: Runtime> {
    pub elements: Checked<'a, R>,
    scales: Option<Checked<'a, R>>,
}

impl<R: Runtime> CheckedCache<'_, R> {
    pub fn is_int8(&self) -> bool {
        self.scales.is_some()
    }

    /// The argument of a kernel that reads or writes vectors of `vector` elements.
    pub fn launch<C: Numeric, N: Size>(&self, vector: usize) -> CachedLaunch<C, N, R> {
        self.argument(vector, false)
    }

    /// The argument of a kernel that only reads: as [`Self::loads`] says.
    pub fn launch_loads<C: Numeric, N: Size>(&self, vector: usize) -> CachedLaunch<C, N, R> {
        self.argument(vector, self.loads(vector).words)
    }

    /// The argument of a kernel that reads elements in words, `vector` of them at a time.
    pub fn launch_words<C: Numeric, N: Size>(&self, vector: usize) -> CachedLaunch<C, N, R> {
        self.argument(vector, true)
    }

    /// How a kernel that only reads loads vectors of `vector` elements.
    pub fn loads(&self, vector: usize) -> Reading {
        match self.is_int8() && vector.is_multiple_of(BYTES) {
            true => Reading {
                elements: u32::as_type_native_unchecked().storage_type(),
                vector: vector / BYTES,
                words: true,
            },
            false => Reading { elements: self.elements.dtype, vector, words: false },
        }
    }

    fn argument<C: Numeric, N: Size>(&self, vector: usize, words: bool) -> CachedLaunch<C, N, R> {
        let strides = self.scales.map_or_else(|| HeadStridesLaunch::new(0, 0, 0), |scales| head_strides(scales, 1));
        CachedLaunch::new(
            array(self.elements),
            head_strides(self.elements, vector),
            self.scales.map(array).into(),
            strides,
            words,
            ZERO,
        )
    }
}

/// Keys or values, on the device. Strides of elements count vectors.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Cached<C: Numeric, N: Size> {
    elements: Array<Vector<C, N>>,
    strides: HeadStrides,
    scales: ComptimeOption<Array<f32>>,
    scale_strides: HeadStrides,
    /// Whether each element is a word of four of int8.
    #[cube(comptime)]
    words: bool,
    /// [`ZERO`].
    zero: u32,
}

/// Where a head of a row begins, among the vectors and among the scales.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct CachedHead {
    elements: u32,
    scales: u32,
}

#[cube]
impl<C: Numeric, N: Size> Cached<C, N> {
    /// A head of a row.
    pub fn head(&self, batch: u32, head: u32) -> CachedHead {
        CachedHead { elements: self.strides.head(batch, head), scales: self.scale_strides.head(batch, head) }
    }

    /// The index of a vector of the head at a slot.
    pub fn place(&self, head: CachedHead, slot: u32, part: u32) -> u32 {
        head.elements + slot * self.strides.token + part
    }

    /// Vectors from a slot to the next.
    pub fn stride(&self) -> u32 {
        self.strides.token
    }

    /// The index of the scale of the head at a slot.
    pub fn scale_place(&self, head: CachedHead, slot: u32) -> u32 {
        head.scales + slot * self.scale_strides.token
    }

    /// A vector of the head at a slot, as it is stored.
    pub fn part(&self, head: CachedHead, slot: u32, part: u32) -> Vector<C, N> {
        self.elements[self.place(head, slot, part) as usize]
    }

    /// `vectors` contiguous vectors from an index on, of elements that are known to be floats.
    pub fn floats<F: Float, S: Size>(&self, at: u32, vectors: u32) -> Slice<Vector<F, S>> {
        self.elements.slice(at as usize, (at + vectors) as usize).downcast::<Vector<F, S>>()
    }

    /// The scale of the head at a slot; 1 for floats.
    pub fn scale(&self, head: CachedHead, slot: u32) -> f32 {
        self.scale_at(self.scale_place(head, slot))
    }

    /// The scale of an index; 1 for floats.
    pub fn scale_at(&self, at: u32) -> f32 {
        #[comptime]
        match &self.scales {
            ComptimeOption::Some(scales) => scales[at as usize],
            ComptimeOption::None => 1.0f32.runtime(),
        }
    }

    /// The vector of an index, as it is stored.
    pub fn at(&self, at: u32) -> Vector<C, N> {
        self.elements[at as usize]
    }

    /// The `S` elements of what one load gives, in f32.
    pub fn widen<S: Size>(&self, loaded: Vector<C, N>) -> Vector<f32, S> {
        integers::<C, N, S>(loaded, self.zero, 0usize, self.words)
    }

    /// The `S` elements of what one load gives, times their scale.
    pub fn features<F: Float, S: Size>(&self, loaded: Vector<C, N>, scale: f32) -> Vector<F, S> {
        if comptime!(self.scales.is_some()) {
            Vector::cast_from(self.widen::<S>(loaded) * Vector::<f32, S>::new(scale))
        } else {
            let mut features = Vector::<F, S>::empty();
            let all = Vector::<F, N>::cast_from(loaded);
            #[unroll]
            for e in 0..S::value() {
                features[e] = all[e];
            }
            features
        }
    }

    /// Writes a vector of floats of the head at a slot.
    pub fn put<F: Float>(&mut self, head: CachedHead, slot: u32, part: u32, features: Vector<F, N>) {
        let at = self.place(head, slot, part) as usize;
        self.elements[at] = Vector::cast_from(features);
    }

    /// The same, where elements may be int8.
    pub fn put_divided<F: Float>(
        &mut self,
        head: CachedHead,
        slot: u32,
        part: u32,
        features: Vector<F, N>,
        divisor: Divisor,
    ) {
        if comptime!(self.scales.is_some()) {
            let at = self.place(head, slot, part) as usize;
            self.elements[at] = divisor.elements::<C, F, N>(features);
        } else {
            self.put::<F>(head, slot, part, features);
        }
    }

    /// Writes the scale of the head at a slot, where the elements are int8.
    pub fn put_scale(&mut self, head: CachedHead, slot: u32, scale: f32) {
        let at = self.scale_place(head, slot) as usize;
        #[comptime]
        match &mut self.scales {
            ComptimeOption::Some(scales) => scales[at] = scale,
            ComptimeOption::None => {}
        }
    }
}

/// The largest magnitude of a vector, by its bits, which are ordered as magnitudes are; infinity and NaN come last.
#[cube]
pub(crate) fn magnitude<F: Float, N: Size>(features: Vector<F, N>) -> u32 {
    let mut largest = 0u32.runtime();
    #[unroll]
    for e in 0..N::value() {
        largest = max(largest, u32::reinterpret(f32::cast_from(features[e])) & 0x7fff_ffffu32);
    }
    largest
}

/// What features of a head are divided by.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Divisor {
    pub scale: f32,
    /// The inverse of the scale, in two parts.
    inverse: f32,
    rest: f32,
    /// Whether a product with both parts rounds to the same integer as the quotient.
    exact: bool,
}

#[cube]
impl Divisor {
    /// The divisor of a head whose largest magnitude has these bits.
    ///
    /// A division takes 8 instructions, a product with an inverse in two parts takes 2. If `fma` rounds once (`fused`; other devices divide), the
    /// product differs from the quotient by 2^-46 of it, before both are rounded to f32. This changes no scale and no integer:
    ///
    /// - A quotient by 127 is at least 2^-33 of itself away from every midpoint of two numbers of f32.
    /// - A quotient by the scale could round to another integer only next to `n + 1/2`, if the midpoint between this and its neighbour in f32 lay
    ///   between product and quotient. Take the scale as an integer of 24 bits, and the feature in such a unit that the quotient stays. The scale
    ///   times the midpoint is a multiple of 2^17, plus or minus the scale; the feature is a multiple of 2^24. They differ by more than 16,
    ///   which is 2^-45 of the feature, unless the last 17 bits of the scale are within 16 of 0. Features are divided by such scales. They are rare
    ///   unless features have few bits.
    pub fn new(magnitude: u32, #[comptime] fused: bool) -> Divisor {
        let largest = f32::reinterpret(magnitude);
        let mut scale = fma(largest, comptime!(INVERSE[0]), largest * comptime!(INVERSE[1]));
        let in_range = if comptime!(fused) {
            magnitude - comptime!(EXACT[0]) < comptime!(EXACT[1] - EXACT[0])
        } else {
            false.runtime()
        };
        if !in_range {
            scale = f32::reinterpret(select(magnitude < INFINITE, magnitude, NAN)) / LARGEST;
        }
        let inverse = 1.0f32 / scale;
        let rest = fma(-scale, inverse, 1.0f32) * inverse;
        let far = (u32::reinterpret(scale) + NEAR) % comptime!(1u32 << 17) > comptime!(2 * NEAR);
        Divisor { scale, inverse, rest, exact: in_range && far }
    }

    /// The elements of features: their quotients, rounded.
    fn elements<C: Numeric, F: Float, N: Size>(&self, features: Vector<F, N>) -> Vector<C, N> {
        let mut elements = Vector::<C, N>::empty();
        if self.exact {
            #[unroll]
            for e in 0..N::value() {
                let feature = f32::cast_from(features[e]);
                let ratio = fma(feature, self.inverse, feature * self.rest);
                elements[e] = C::cast_from(i32::reinterpret(ratio + INTEGERS));
            }
        } else {
            // Neither 0 nor NaN is more than 0.
            let some = self.scale > 0.0f32;
            let divisor = select(some, self.scale, 1.0f32);
            #[unroll]
            for e in 0..N::value() {
                let ratio = f32::cast_from(features[e]) / divisor;
                let ratio = min(max(ratio, -LARGEST), LARGEST);
                elements[e] = C::cast_from(select(some, i32::reinterpret(ratio + INTEGERS), 0i32));
            }
        }
        elements
    }
}
