//! Conversions, comparisons, selection and moves.

use half::{bf16, f16};

use crate::lab::{Run, bytes, check1, check2, each, interesting_floats, kernel, words};

fn of_floats(operation: &str, result: u32, expected: impl Fn(f32) -> u64) {
    let values: Vec<Vec<u64>> = interesting_floats().into_iter().map(|bits| vec![bits]).collect();
    for (found, value) in each(operation, result, &[32], &values).into_iter().zip(&values) {
        let input = f32::from_bits(value[0] as u32);
        assert_eq!(found, expected(input), "{operation} of {input:?}");
    }
}

#[test]
fn integers_change_their_width_and_sign() {
    check1("cvt.u64.u32", 64, 32, |a| a);
    check1("cvt.s64.s32", 64, 32, |a| i64::from(a as i32) as u64);
    check1("cvt.u16.u32", 16, 32, |a| a & 0xffff);
    check1("cvt.s32.s8", 32, 32, |a| u64::from(i32::from(a as i8) as u32));
    check1("cvt.u32.u8", 32, 32, |a| a & 0xff);
    check1("cvt.sat.s8.s32", 32, 32, |a| u64::from((a as i32).clamp(-128, 127) as u32 & 0xff));
    check1("cvt.sat.u8.s32", 32, 32, |a| (a as i32).clamp(0, 255) as u64);
}

#[test]
fn integers_become_the_nearest_float() {
    check1("cvt.rn.f32.s32", 32, 32, |a| u64::from((a as i32 as f32).to_bits()));
    check1("cvt.rn.f32.u32", 32, 32, |a| u64::from((a as u32 as f32).to_bits()));
    check1("cvt.rn.f32.u64", 32, 64, |a| u64::from((a as f32).to_bits()));
    check1("cvt.rn.f64.s64", 64, 64, |a| (a as i64 as f64).to_bits());
    check1("cvt.rn.f32.s16", 32, 16, |a| u64::from(f32::from(a as i16).to_bits()));
}

#[test]
fn floats_become_integers_by_the_rounding_that_is_named() {
    let at_the_ends = |value: f64| if value.is_nan() { 0 } else { u64::from(value as i32 as u32) };
    of_floats("cvt.rni.s32.f32", 32, |x| at_the_ends(f64::from(x).round_ties_even()));
    of_floats("cvt.rzi.s32.f32", 32, |x| at_the_ends(f64::from(x).trunc()));
    of_floats("cvt.rmi.s32.f32", 32, |x| at_the_ends(f64::from(x).floor()));
    of_floats("cvt.rpi.s32.f32", 32, |x| at_the_ends(f64::from(x).ceil()));
    of_floats("cvt.rzi.u32.f32", 32, |x| if x.is_nan() { 0 } else { u64::from(x as u32) });
    of_floats("cvt.rni.sat.s8.f32", 32, |x| if x.is_nan() { 0 } else { u64::from(x.round_ties_even() as i8 as u8) });
}

#[test]
fn halves_become_floats_and_back() {
    check1("cvt.f32.f16", 32, 16, |a| u64::from(f16::from_bits(a as u16).to_f32().to_bits()));
    check1("cvt.f32.bf16", 32, 16, |a| u64::from(bf16::from_bits(a as u16).to_f32().to_bits()));
    of_floats("cvt.rn.f16.f32", 16, |x| if x.is_nan() { 0x7fff } else { f16::from_f32(x).to_bits().into() });
    of_floats("cvt.rn.bf16.f32", 16, |x| if x.is_nan() { 0x7fff } else { bf16::from_f32(x).to_bits().into() });
    let pair = |x: f32, y: f32| vec![u64::from(x.to_bits()), u64::from(y.to_bits())];
    let expected = u64::from(f16::from_f32(1.5).to_bits()) << 16 | u64::from(f16::from_f32(-2.0).to_bits());
    assert_eq!(each("cvt.rn.f16x2.f32", 32, &[32, 32], &[pair(1.5, -2.0)]), [expected], "the first is the upper half");
    assert_eq!(each("cvt.rn.relu.f16x2.f32", 32, &[32, 32], &[pair(1.5, -2.0)]), [expected & 0xffff_0000]);
}

#[test]
fn tf32_keeps_ten_bits_of_the_fraction_and_nan() {
    of_floats("cvt.rna.tf32.f32", 32, |value| match value {
        value if value.is_nan() => 0x7fff_ffff,
        // To nearest, ties away from zero.
        value => u64::from(value.to_bits().wrapping_add(0x1000) & !0x1fff),
    });
}

#[test]
fn comparisons_know_a_nan() {
    let floats = interesting_floats();
    let values: Vec<Vec<u64>> = floats.iter().flat_map(|a| floats.iter().map(|b| vec![*a, *b])).collect();
    type Holds = fn(f32, f32) -> bool;
    let cases: [(&str, Holds); 8] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a.partial_cmp(&b).is_some_and(|order| order.is_ne())),
        ("lt", |a, b| a < b),
        ("ge", |a, b| a >= b),
        ("neu", |a, b| a != b),
        ("leu", |a, b| a.partial_cmp(&b).is_none_or(|order| order.is_le())),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ];
    for (name, expected) in cases {
        for values in values.chunks(1024) {
            for (found, value) in compared(name, values).into_iter().zip(values) {
                let [a, b] = [value[0], value[1]].map(|bits| f32::from_bits(bits as u32));
                assert_eq!(found == 1, expected(a, b), "{a:?} {name} {b:?}");
            }
        }
    }
}

/// Whether each pair of floats compares so, as 1 or 0.
fn compared(name: &str, values: &[Vec<u64>]) -> Vec<u32> {
    let body = format!(
        "mul.wide.u32 %x1, %t, 8; add.s64 %x1, %p0, %x1; ld.global.v2.u32 {{%r1, %r2}}, [%x1];\n\
         setp.{name}.f32 %q1, %r1, %r2; selp.u32 %r3, 1, 0, %q1;\n\
         mul.wide.u32 %x2, %t, 4; add.s64 %x2, %p1, %x2; st.global.u32 [%x2], %r3;"
    );
    let all: Vec<u32> = values.iter().flatten().map(|value| *value as u32).collect();
    let run = Run { block: values.len() as u32, ..Run::default() };
    let buffers = [Ok(bytes(&all, u32::to_le_bytes)), Err(4 * values.len())];
    words(&run.on(&kernel("", &body), &buffers).unwrap()[1])
}

#[test]
fn predicates_are_joined_and_complemented() {
    // Threads 8 to 23 are in, by two comparisons; the complement of the second is kept, too.
    let body = "setp.ge.u32 %q1, %t, 8; setp.lt.and.u32 %q2|%q3, %t, 24, %q1; selp.u32 %r1, 1, 0, %q2; selp.u32 %r2, 2, 0, %q3;\n\
                or.b32 %r1, %r1, %r2; not.pred %q4, %q1; and.pred %q5, %q4, !%q2; selp.u32 %r3, 4, 0, %q5; or.b32 %r1, %r1, %r3;\n\
                mul.wide.u32 %x1, %t, 4; add.s64 %x1, %p0, %x1; st.global.u32 [%x1], %r1;";
    let found = words(&Run::default().on(&kernel("", body), &[Err(128)]).unwrap()[0]);
    for (thread, found) in found.into_iter().enumerate() {
        let (first, second) = (thread >= 8, thread < 24);
        let expected = u32::from(second && first) + 2 * u32::from(!second && first) + 4 * u32::from(!first);
        assert_eq!(found, expected, "thread {thread}");
    }
}

#[test]
fn integers_compare_by_the_sign_of_the_type() {
    let select = |a: u64, b: u64, chosen: bool| if chosen { a } else { b };
    check2("max.u64", 64, [64, 64], |a, b| select(a, b, a > b));
    check2("min.s16", 16, [16, 16], |a, b| select(a, b, (a as i16) < (b as i16)));
}

#[test]
fn words_are_split_and_joined() {
    let body = "mov.b32 %r1, 0x89abcdef; mov.b32 {%h1, %h2}, %r1; mov.b32 %r2, {%h2, %h1};\n\
                mov.b64 %x1, {%r1, %r2}; mov.b64 {%r3, %r4}, %x1; cvta.to.global.u64 %x2, %p0;\n\
                st.global.v2.u32 [%x2], {%r2, %r3}; st.global.u32 [%x2+8], %r4;";
    let run = Run { block: 1, ..Run::default() };
    let found = words(&run.on(&kernel("", body), &[Err(12)]).unwrap()[0]);
    assert_eq!(found, [0xcdef_89ab, 0x89ab_cdef, 0xcdef_89ab]);
}
