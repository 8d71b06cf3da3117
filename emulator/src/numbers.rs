//! Bits to numbers and back.

use half::{bf16, f16};

/// The number with these bits.
#[inline(always)]
pub fn f32_of(bits: u32) -> f32 {
    f32::from_bits(bits)
}

/// The bits of a result. Arithmetic on f32 has one NaN.
#[inline(always)]
pub fn bits_of(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

/// Zero, with its sign, in place of a subnormal number; `.ftz`.
#[inline(always)]
pub fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

/// The lower 16 bits as f16.
#[inline(always)]
pub fn f16_of(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}

/// The lower 16 bits as bf16.
#[inline(always)]
pub fn bf16_of(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// The bits of the nearest f16, ties to even.
#[inline(always)]
pub fn to_f16(value: f64) -> u32 {
    match value.is_nan() {
        true => 0x7fff, // the NaN that PTX writes
        false => f16::from_f32(rounded_to_odd(value)).to_bits().into(),
    }
}

/// The bits of the nearest bf16, ties to even.
#[inline(always)]
pub fn to_bf16(value: f64) -> u32 {
    match value.is_nan() {
        true => 0x7fff,
        false => bf16::from_f32(rounded_to_odd(value)).to_bits().into(),
    }
}

/// An f32 whose last bit says whether anything was cut off. Rounded once more to at most 22 bits, it gives the nearest number.
fn rounded_to_odd(value: f64) -> f32 {
    let near = value as f32;
    if near.is_infinite() && value.is_finite() {
        return f32::MAX.copysign(near); // far above what a half holds, and it rounds to infinity there
    }
    if f64::from(near) == value {
        return near;
    }
    let towards_zero = if f64::from(near).abs() > value.abs() { f32::from_bits(near.to_bits() - 1) } else { near };
    f32::from_bits(towards_zero.to_bits() | 1)
}

/// The number whose bytes these are, the lowest first; eight at most.
#[inline(always)]
pub fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The lower bits as a signed integer.
#[inline(always)]
pub fn signed(value: u64, bits: u32) -> i64 {
    let unused = 64 - bits;
    (value << unused) as i64 >> unused
}

/// The lower bits.
#[inline(always)]
pub fn low(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_has_one_nan() {
        let nan = f32::from_bits(0x7fc0_beef);
        assert_eq!([bits_of(nan), bits_of(-nan), bits_of(nan + 1.0)], [0x7fff_ffff; 3]);
        assert_eq!(bits_of(-0.0), 1 << 31);
    }

    #[test]
    fn halves_are_rounded_once() {
        // Just above the middle between two f16, by less than an f32 resolves.
        let middle = 1.0 + 2f64.powi(-11);
        assert_eq!(to_f16(middle), 0x3c00, "a tie goes to even");
        assert_eq!(to_f16(middle + 2f64.powi(-40)), 0x3c01);
        assert_eq!(to_f16(-(middle + 2f64.powi(-40))), 0xbc01);
        let middle = 1.0 + 2f64.powi(-8);
        assert_eq!(to_bf16(middle), 0x3f80);
        assert_eq!(to_bf16(middle + 2f64.powi(-40)), 0x3f81);
        assert_eq!((to_f16(1e300), to_bf16(1e300), to_f16(f64::NAN)), (0x7c00, 0x7f80, 0x7fff));
        assert_eq!(to_f16(2f64.powi(-25) + 2f64.powi(-60)), 1, "subnormal");
    }

    #[test]
    fn every_f16_and_bf16_is_its_own_nearest() {
        for bits in 0..=u32::from(u16::MAX) {
            if !f16_of(bits).is_nan() {
                assert_eq!(to_f16(f16_of(bits).into()), bits);
            }
            if !bf16_of(bits).is_nan() {
                assert_eq!(to_bf16(bf16_of(bits).into()), bits);
            }
        }
    }
}
