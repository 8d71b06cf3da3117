//! Where the heads of a projection are, and where they go.

use cubecl::prelude::*;
use cubecl::std::FastDivmod;

use crate::cube::masks::RowStrides;
use crate::cube::tensors::HeadStrides;

/// Scalar sizes. Strides count vectors, those of the table elements.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    /// What the kernel counts: vectors of a few heads, or few heads.
    pub count: u32,
    /// Places of a token.
    pub places: FastDivmod<u32>,
    pub tokens: FastDivmod<u32>,
    pub heads: u32,
    pub kv_heads: u32,
    pub qkv_batch: u32,
    pub qkv_token: u32,
    pub query: HeadStrides,
    pub table_batch: u32,
    pub table_token: u32,
    pub bounds: RowStrides,
    /// The first new slot, where the bounds do not say.
    pub start: u32,
    /// The end of the new slots, or with bounds the slots of the cache.
    pub end: u32,
    /// Which tensors are there; see [`presence`](crate::cube::tensors::presence).
    #[cube(comptime)]
    #[allow(dead_code, reason = "it is part of the key of the kernel")]
    pub present: u32,
    /// Whether the projection has no values, and keys take their place.
    #[cube(comptime)]
    pub keys_are_values: bool,
}

/// Which head of which token; queries come first, then keys, then values.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub batch: u32,
    pub token: u32,
    pub head: u32,
}

/// Where a token goes in the cache.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Slot {
    pub at: u32,
    /// Whether the token exists: a row may have fewer new ones than the longest.
    pub taken: bool,
}

#[cube]
impl Sizes {
    /// The first head at this place, where each place has `each` heads of a token.
    pub fn place(&self, at: u32, #[comptime] each: u32) -> Place {
        let (token, place) = self.places.div_mod(at);
        let (batch, token) = self.tokens.div_mod(token);
        Place { batch, token, head: place * each }
    }

    /// Where the projection of a token begins.
    pub fn source(&self, place: Place) -> u32 {
        place.batch * self.qkv_batch + place.token * self.qkv_token
    }

    /// The head of the projection that becomes this one.
    pub fn projected(&self, head: u32) -> u32 {
        if comptime!(self.keys_are_values) {
            select(head >= self.heads + self.kv_heads, head - self.kv_heads, head)
        } else {
            head
        }
    }

    /// Whether the head is one of those that are rotated: queries and keys.
    pub fn rotates(&self, head: u32) -> bool {
        head < self.heads + self.kv_heads
    }

    /// The slot of a token.
    pub fn slot(&self, bounds: &ComptimeOption<Array<u32>>, place: Place) -> Slot {
        let mut start = self.start;
        let mut end = self.end;
        #[comptime]
        match bounds {
            ComptimeOption::Some(bounds) => {
                let row = place.batch * self.bounds.row;
                start = bounds[row as usize];
                // The host has not checked these: no value may lead to a write outside the cache.
                end = min(bounds[(row + self.bounds.key) as usize], self.end);
            }
            ComptimeOption::None => {}
        }
        let at = start + place.token;
        // A sum that wraps is not a slot.
        Slot { at, taken: at >= start && at < end }
    }

    /// Where the vectors of a query go.
    pub fn query(&self, place: Place) -> u32 {
        self.query.head(place.batch, place.head) + place.token * self.query.token
    }
}
