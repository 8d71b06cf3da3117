//! Integers and bits.

use crate::lab::{Run, bytes, check1, check2, each, interesting, kernel, words};

#[test]
fn sums_and_products_wrap() {
    check2("add.s32", 32, [32, 32], |a, b| u64::from((a as u32).wrapping_add(b as u32)));
    check2("sub.u32", 32, [32, 32], |a, b| u64::from((a as u32).wrapping_sub(b as u32)));
    check2("add.s64", 64, [64, 64], u64::wrapping_add);
    check2("sub.s64", 64, [64, 64], u64::wrapping_sub);
    check2("add.s16", 16, [16, 16], |a, b| u64::from((a as u16).wrapping_add(b as u16)));
    check2("sub.s16", 16, [16, 16], |a, b| u64::from((a as u16).wrapping_sub(b as u16)));
    check2("mul.lo.s32", 32, [32, 32], |a, b| u64::from((a as u32).wrapping_mul(b as u32)));
    check2("mul.lo.s16", 16, [16, 16], |a, b| u64::from((a as u16).wrapping_mul(b as u16)));
    check2("mul.lo.s64", 64, [64, 64], u64::wrapping_mul);
}

#[test]
fn saturating_sums_stop_at_the_ends() {
    check2("add.sat.s32", 32, [32, 32], |a, b| u64::from((a as i32).saturating_add(b as i32) as u32));
    check2("sub.sat.s32", 32, [32, 32], |a, b| u64::from((a as i32).saturating_sub(b as i32) as u32));
}

#[test]
fn wide_and_high_products_keep_the_upper_half() {
    check2("mul.wide.u32", 64, [32, 32], |a, b| a * b);
    check2("mul.wide.s32", 64, [32, 32], |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64);
    check2("mul.wide.u16", 32, [16, 16], |a, b| a * b);
    check2("mul.wide.s16", 32, [16, 16], |a, b| u64::from((i32::from(a as i16) * i32::from(b as i16)) as u32));
    check2("mul.hi.u32", 32, [32, 32], |a, b| (a * b) >> 32);
    check2("mul.hi.s32", 32, [32, 32], |a, b| u64::from(((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32));
    check2("mul.hi.u64", 64, [64, 64], |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check2("mul.hi.s64", 64, [64, 64], |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
}

#[test]
fn products_and_sums_in_one_use_the_third_input() {
    let (small, large) = (interesting(32), interesting(64));
    let values: Vec<Vec<u64>> =
        (0..1000).map(|at| vec![small[at % 31], small[at * 7 % 29], large[at * 3 % 31]]).collect();
    let check = |operation: &str, result: u32, third: u32, expected: &dyn Fn(u64, u64, u64) -> u64| {
        let cut = |value: u64| if third == 64 { value } else { value & 0xffff_ffff };
        let values: Vec<Vec<u64>> = values.iter().map(|v| vec![v[0], v[1], cut(v[2])]).collect();
        for (found, v) in each(operation, result, &[32, 32, third], &values).into_iter().zip(&values) {
            assert_eq!(found, expected(v[0], v[1], v[2]), "{operation} of {v:x?}");
        }
    };
    check("mad.lo.s32", 32, 32, &|a, b, c| u64::from((a as u32).wrapping_mul(b as u32).wrapping_add(c as u32)));
    check("mad.hi.u32", 32, 32, &|a, b, c| u64::from((((a * b) >> 32) as u32).wrapping_add(c as u32)));
    check("mad.wide.u32", 64, 64, &|a, b, c| (a * b).wrapping_add(c));
    check("mad.wide.s32", 64, 64, &|a, b, c| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64);
}

#[test]
fn quotients_follow_the_sign_of_the_type() {
    let not_zero = |f: fn(u64, u64) -> u64, zero: fn(u64) -> u64| move |a, b| if b == 0 { zero(a) } else { f(a, b) };
    let ones = |_| 0xffff_ffff;
    check2("div.u32", 32, [32, 32], not_zero(|a, b| a / b, ones));
    check2("rem.u32", 32, [32, 32], not_zero(|a, b| a % b, |a| a));
    check2("div.s32", 32, [32, 32], not_zero(|a, b| u64::from((a as i32).wrapping_div(b as i32) as u32), ones));
    check2("rem.s32", 32, [32, 32], not_zero(|a, b| u64::from((a as i32).wrapping_rem(b as i32) as u32), |a| a));
    check2("div.u64", 64, [64, 64], not_zero(|a, b| a / b, |_| u64::MAX));
    check2("rem.s64", 64, [64, 64], not_zero(|a, b| (a as i64).wrapping_rem(b as i64) as u64, |a| a));
}

#[test]
fn smallest_largest_and_magnitudes() {
    check2("min.u32", 32, [32, 32], u64::min);
    check2("max.u32", 32, [32, 32], u64::max);
    check2("min.s32", 32, [32, 32], |a, b| u64::from((a as i32).min(b as i32) as u32));
    check2("max.s16", 16, [16, 16], |a, b| u64::from((a as i16).max(b as i16) as u16));
    check2("max.s64", 64, [64, 64], |a, b| (a as i64).max(b as i64) as u64);
    check1("abs.s32", 32, 32, |a| u64::from((a as i32).wrapping_abs() as u32));
    check1("neg.s32", 32, 32, |a| u64::from((a as i32).wrapping_neg() as u32));
    check1("neg.s64", 64, 64, u64::wrapping_neg);
}

#[test]
fn logic_on_bits() {
    check2("and.b32", 32, [32, 32], |a, b| a & b);
    check2("or.b64", 64, [64, 64], |a, b| a | b);
    check2("xor.b16", 16, [16, 16], |a, b| a ^ b);
    check1("not.b32", 32, 32, |a| u64::from(!(a as u32)));
    check1("not.b16", 16, 16, |a| u64::from(!(a as u16)));
}

/// PTX ISA, "Logic and Shift Instructions: lop3": the table is the function of `a = 0xf0`, `b = 0xcc` and `c = 0xaa`.
#[test]
fn any_function_of_three_bits() {
    type Function = fn(u32, u32, u32) -> u32;
    let functions: [Function; 10] = [
        |_, _, _| 0,
        |_, _, _| u32::MAX,
        |a, _, _| a,
        |_, b, _| !b,
        |a, b, c| a & b & c,
        |a, b, c| a | b | c,
        |a, b, c| a ^ b ^ c,
        |a, b, c| a & b | !a & c,
        |a, b, c| a & b | a & c | b & c,
        |a, b, c| a & !b ^ c,
    ];
    let some = interesting(32);
    let inputs: Vec<u32> = (0..31).flat_map(|at| [at, at * 7 % 31, at * 11 % 31]).map(|at| some[at] as u32).collect();
    let count = functions.len();
    let mut body = format!(
        "mul.wide.u32 %x1, %t, 12; add.s64 %x1, %p0, %x1; mul.wide.u32 %x2, %t, {}; add.s64 %x2, %p1, %x2;\n\
         ld.global.u32 %r1, [%x1]; ld.global.u32 %r2, [%x1+4]; ld.global.u32 %r3, [%x1+8];\n",
        4 * count
    );
    for (at, function) in functions.iter().enumerate() {
        let table = function(0xf0, 0xcc, 0xaa) & 0xff;
        body += &format!("lop3.b32 %r4, %r1, %r2, %r3, {table:#x}; st.global.u32 [%x2+{}], %r4;\n", 4 * at);
    }
    let run = Run { block: 31, ..Run::default() };
    let buffers = [Ok(bytes(&inputs, u32::to_le_bytes)), Err(31 * 4 * count)];
    let found = words(&run.on(&kernel("", &body), &buffers).unwrap()[1]);
    for (found, inputs) in found.chunks_exact(count).zip(inputs.chunks_exact(3)) {
        let expected: Vec<u32> = functions.iter().map(|function| function(inputs[0], inputs[1], inputs[2])).collect();
        assert_eq!(found, expected, "{inputs:x?}");
    }
}

#[test]
fn shifts_beyond_the_width_leave_zeros_or_the_sign() {
    check2("shl.b32", 32, [32, 32], |a, by| if by > 31 { 0 } else { a << by & 0xffff_ffff });
    check2("shl.b64", 64, [64, 32], |a, by| if by > 63 { 0 } else { a << by });
    check2("shl.b16", 16, [16, 32], |a, by| if by > 15 { 0 } else { a << by & 0xffff });
    check2("shr.u32", 32, [32, 32], |a, by| if by > 31 { 0 } else { a >> by });
    check2("shr.u64", 64, [64, 32], |a, by| if by > 63 { 0 } else { a >> by });
    check2("shr.s32", 32, [32, 32], |a, by| u64::from((a as i32 >> by.min(31)) as u32));
    check2("shr.s16", 16, [16, 32], |a, by| u64::from((a as i16 >> by.min(15)) as u16));
    check2("shr.s64", 64, [64, 32], |a, by| (a as i64 >> by.min(63)) as u64);
}

#[test]
fn bits_are_counted_and_turned() {
    check1("popc.b32", 32, 32, |a| a.count_ones().into());
    check1("popc.b64", 32, 64, |a| a.count_ones().into());
    check1("clz.b32", 32, 32, |a| (a as u32).leading_zeros().into());
    check1("clz.b64", 32, 64, |a| a.leading_zeros().into());
    check1("brev.b32", 32, 32, |a| (a as u32).reverse_bits().into());
}

#[test]
fn fields_are_taken_out_and_put_in() {
    let values: Vec<Vec<u64>> = interesting(32)
        .into_iter()
        .flat_map(|a| [(0, 0), (0, 8), (3, 5), (16, 16), (24, 32), (31, 1), (40, 4)].map(|(at, len)| vec![a, at, len]))
        .collect();
    for (found, v) in each("bfe.u32", 32, &[32; 3], &values).into_iter().zip(&values) {
        let shifted = if v[1] > 31 { 0 } else { v[0] >> v[1] };
        assert_eq!(found, if v[2] > 31 { shifted } else { shifted & ((1 << v[2]) - 1) }, "bfe.u32 of {v:x?}");
    }
    for (found, v) in each("bfe.s32", 32, &[32; 3], &values).into_iter().zip(&values) {
        let shifted = i64::from(v[0] as i32) >> v[1].min(63);
        let expected = if v[2] == 0 { 0 } else { shifted << (64 - v[2]) >> (64 - v[2]) };
        assert_eq!(found, u64::from(expected as u32), "bfe.s32 of {v:x?}");
    }
    let values: Vec<Vec<u64>> = values.iter().map(|v| vec![v[0], 0x1234_5678, v[1], v[2]]).collect();
    for (found, v) in each("bfi.b32", 32, &[32; 4], &values).into_iter().zip(&values) {
        let ones = if v[3] > 31 { u32::MAX } else { (1 << v[3]) - 1 };
        let field = if v[2] > 31 { 0 } else { ones << v[2] };
        let moved = if v[2] > 31 { 0 } else { (v[0] as u32) << v[2] };
        assert_eq!(found, u64::from(v[1] as u32 & !field | moved & field), "bfi.b32 of {v:x?}");
    }
}

#[test]
fn bytes_are_permuted_and_funnels_shift() {
    let values: Vec<Vec<u64>> = [0x3210, 0x7654, 0x0123, 0x8888, 0xfedc, 0x5410]
        .into_iter()
        .map(|selectors| vec![0x8071_f203, 0x1584_36c7, selectors])
        .collect();
    for (found, v) in each("prmt.b32", 32, &[32; 3], &values).into_iter().zip(&values) {
        let bytes = (v[0] | v[1] << 32).to_le_bytes();
        let expected: [u8; 4] = std::array::from_fn(|at| {
            let selector = (v[2] >> (4 * at) & 15) as usize;
            let byte = bytes[selector & 7];
            if selector > 7 { if byte > 127 { 255 } else { 0 } } else { byte }
        });
        assert_eq!(found, u64::from(u32::from_le_bytes(expected)), "prmt of {v:x?}");
    }
    let values: Vec<Vec<u64>> = [0, 1, 8, 31, 32, 40].map(|by| vec![0x89ab_cdef, 0x0123_4567, by]).to_vec();
    for (found, v) in each("shf.l.wrap.b32", 32, &[32; 3], &values).into_iter().zip(&values) {
        assert_eq!(found, ((v[0] | v[1] << 32) << (v[2] & 31)) >> 32, "{v:x?}");
    }
    for (found, v) in each("shf.r.clamp.b32", 32, &[32; 3], &values).into_iter().zip(&values) {
        assert_eq!(found, (v[0] | v[1] << 32) >> v[2].min(32) & 0xffff_ffff, "{v:x?}");
    }
}

#[test]
fn bytes_and_halves_are_multiplied_and_added() {
    let words = [0, 1, 0x7f80_ff01, 0x8071_f203, 0xffff_ffff, 0x0102_0304, 0x8000_7fff];
    let values: Vec<Vec<u64>> = (0..49).map(|at| vec![words[at % 7], words[at / 7], words[at * 3 % 7]]).collect();
    let bytes = |word: u64| (word as u32).to_le_bytes();
    let halves = |word: u64| [word as u16, (word >> 16) as u16];
    let sum = |start: u64, products: &[i64]| u64::from((start as i64 + products.iter().sum::<i64>()) as u32);
    for (name, has_signs) in
        [("dp4a.u32.u32", [false; 2]), ("dp4a.s32.s32", [true; 2]), ("dp4a.u32.s32", [false, true])]
    {
        let byte = |value: u8, signed: bool| if signed { i64::from(value as i8) } else { i64::from(value) };
        for (found, v) in each(name, 32, &[32; 3], &values).into_iter().zip(&values) {
            let product = |at: usize| byte(bytes(v[0])[at], has_signs[0]) * byte(bytes(v[1])[at], has_signs[1]);
            assert_eq!(found, sum(v[2], &[0, 1, 2, 3].map(product)), "{name} of {v:x?}");
        }
    }
    for (found, v) in each("dp2a.lo.u32.u32", 32, &[32; 3], &values).into_iter().zip(&values) {
        let product = |at: usize| i64::from(halves(v[0])[at]) * i64::from(bytes(v[1])[at]);
        assert_eq!(found, sum(v[2], &[0, 1].map(product)), "dp2a.lo of {v:x?}");
    }
    for (found, v) in each("dp2a.hi.s32.u32", 32, &[32; 3], &values).into_iter().zip(&values) {
        let product = |at: usize| i64::from(halves(v[0])[at] as i16) * i64::from(bytes(v[1])[at + 2]);
        assert_eq!(found, sum(v[2], &[0, 1].map(product)), "dp2a.hi of {v:x?}");
    }
}
