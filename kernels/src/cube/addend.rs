//! A tensor that is added to given scores. It broadcasts to them and is read the same way.

use cubecl::prelude::*;

use super::contract::Checked;
use super::tensors::array;

/// The position of an addend of the scores, in elements: its first one, and its strides along the axes of the scores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub first: usize,
    pub strides: [usize; 4],
}

impl Places {
    /// The width of the vectors that the addend is read in: that of the scores, or 1 where its strides differ.
    pub fn width(places: Option<Self>, vector: usize) -> usize {
        let Some(Self { first, strides: [batch, head, token, key] }) = places else { return 1 };
        let aligned = [first, batch, head, token].iter().all(|stride| stride.is_multiple_of(vector));
        if key == 1 && aligned { vector } else { 1 }
    }
}

/// The addend as the argument of a kernel, read in vectors of `width`, those of the scores being of `vector` elements.
pub(crate) fn addend<E: Float, W: Size, R: Runtime>(
    tensor: Option<Checked<'_, R>>,
    places: Option<Places>,
    width: usize,
    vector: usize,
) -> AddendLaunch<E, W, R> {
    let Places { first, strides } = places.unwrap_or(Places { first: 0, strides: [0; 4] });
    let [batch, head, token] = std::array::from_fn(|axis| (strides[axis] / width) as u32);
    let together = width == vector && strides[3] == 1;
    AddendLaunch::new(
        tensor.map(array).into(),
        (first / width) as u32,
        batch,
        head,
        token,
        strides[3] as u32,
        together,
        tensor.is_some(),
    )
}

/// What is added to the scores, in vectors of `W`.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Addend<E: Float, W: Size> {
    values: ComptimeOption<Array<Vector<E, W>>>,
    /// The first vector, and the strides along batch, head and token, in vectors.
    first: u32,
    batch: u32,
    head: u32,
    token: u32,
    /// Stride along the keys, in elements.
    key: u32,
    /// Whether it is read in the same vectors as the scores.
    #[cube(comptime)]
    together: bool,
    /// Whether there is one. A kernel has several addends; see [`presence`](super::tensors::presence).
    #[cube(comptime)]
    #[allow(dead_code, reason = "it is part of the key of the kernel")]
    present: bool,
}

#[cube]
impl<E: Float, W: Size> Addend<E, W> {
    /// The first vector of a row.
    pub fn row(&self, batch: u32, head: u32, token: u32) -> u32 {
        self.first + batch * self.batch + head * self.head + token * self.token
    }

    /// What [`Self::add`] needs of vector `at` of a row, if that is a whole vector; otherwise zeros.
    pub fn load(&self, row: u32, at: u32) -> Vector<E, W> {
        let mut loaded = Vector::<E, W>::new(E::from_int(0));
        #[comptime]
        match &self.values {
            ComptimeOption::Some(values) => {
                if comptime!(self.together) {
                    loaded = values[(row + at) as usize];
                }
            }
            ComptimeOption::None => {}
        }
        loaded
    }

    /// Vector `at` of the scores of a row, plus the matching elements of this tensor, of which `loaded` is what [`Self::load`] gave.
    pub fn add<N: Size>(&self, scores: Vector<f32, N>, loaded: Vector<E, W>, row: u32, at: u32) -> Vector<f32, N> {
        let mut sum = scores;
        #[comptime]
        match &self.values {
            ComptimeOption::Some(values) => {
                if comptime!(self.together) {
                    sum += Vector::<f32, N>::cast_from(loaded);
                } else {
                    let width = scores.size();
                    #[unroll]
                    for e in 0..width {
                        let key = at * width as u32 + e as u32;
                        sum[e] += f32::cast_from(values[(row + key * self.key) as usize][0]);
                    }
                }
            }
            ComptimeOption::None => {}
        }
        sum
    }
}
