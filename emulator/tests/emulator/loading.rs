//! Modules that load, and those that do not.

use cuda::error::LoadError;
use cuda::{Device, Module};

use crate::lab::{Run, kernel, words};

fn refused(ptx: &str) -> LoadError {
    Module::load(ptx, &Device::new()).err().expect("it should have been refused")
}

#[test]
fn an_unknown_instruction_is_named() {
    for (statement, reason) in [
        ("frobnicate.b32 %r1, %r2", "the opcode `frobnicate` is not supported"),
        ("add.rz.f32 %r1, %r2, %r3", "the modifier `.rz` is not supported here"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 %r1, %r2, %r3, %r4", "the shape is not supported"),
        ("mma.sync.aligned.m16n8k4.row.col.f32.f16.f16.f32 %r1, %r2, %r3, %r4", "no product of this depth"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32 %r1, %r2, %r3, %r4", "no product of this depth"),
        ("mma.sync.aligned.m16n8k8.row.col.bf16.bf16.bf16.bf16 %r1, %r2, %r3, %r4", "sums in f32"),
        ("mma.sync.aligned.m16n8k8.row.col.f16.bf16.bf16.f16 %r1, %r2, %r3, %r4", "sums in f32"),
        ("add.u32 %r1, %r2, %nosuch", "`%nosuch` is no register, variable or parameter"),
        ("bra NOWHERE", "there is no label `NOWHERE`"),
        ("ld.global.v4.b64 {%x1, %x2, %x3, %x4}, [%p0]", "an access of more than 16 bytes"),
        ("ld.global.v2.u32 {%r1, %r2, %r3}, [%p0]", "3 registers for 2 elements"),
        ("bar.sync %r1", "a barrier needs a constant number"),
        ("add.u32 %q1, %r1, %r2", "`%q1` is a predicate where a number is written"),
    ] {
        let error = refused(&kernel("", &format!("{statement};")));
        let LoadError::Statement { kernel, statement: found, reason: given } = &error else { panic!("{error}") };
        assert_eq!((kernel.as_str(), found.as_str()), ("k", statement));
        assert!(given.contains(reason), "{given}");
    }
}

#[test]
fn text_that_is_not_ptx_says_where() {
    let error = refused(".version 9.0 .target sm_90a .address_size 64 .visible .func f() { ret; }");
    assert!(error.to_string().contains("the directive `.func` is not known"), "{error}");
    assert!(refused("what").to_string().contains("`what`"));
    assert!(refused(".visible .entry k() { add.u32 %r1 ").to_string().contains("the text ends early"));
}

#[test]
fn inline_assembly_has_names_of_its_own() {
    let body = "mov.u32 %r1, 5;\n// begin inline asm\n{ .reg .pred p; .reg .b32 q; setp.eq.u32 p, %r1, 5; mov.u32 q, 1;\n\
                { .reg .b32 q; mov.u32 q, 2; @p add.u32 %r1, %r1, q; } add.u32 %r1, %r1, q; }\n// end inline asm\n\
                st.global.u32 [%p0], %r1;";
    let run = Run { block: 1, ..Run::default() };
    assert_eq!(words(&run.on(&kernel("", body), &[Err(4)]).unwrap()[0]), [8]);
}

#[test]
fn variables_of_a_module_start_with_what_they_say() {
    let ptx = kernel(
        "",
        "mov.u64 %x1, table; ld.global.u32 %r1, [%x1+4]; ld.const.u32 %r2, [zeros]; add.u32 %r1, %r1, %r2;\n\
                          st.global.u32 [%p0], %r1;",
    )
    .replace(
        ".visible .entry",
        ".global .align 4 .u32 table[2] = {7, 11};\n.const .align 4 .b8 zeros[4];\n.visible .entry",
    );
    let run = Run { block: 1, ..Run::default() };
    assert_eq!(words(&run.on(&ptx, &[Err(4)]).unwrap()[0]), [11]);
}

#[test]
fn parameters_are_records_too() {
    let ptx = ".version 9.0 .target sm_80 .address_size 64\n\
               .visible .entry k(.param .u64 .ptr .global .align 4 a, .param .align 8 .b8 record[16], .param .u32 last)\n\
               .maxntid 32, 1, 1\n.minnctapersm 2\n{ .reg .b64 %x<4>; .reg .b32 %r<4>; .loc 1 24 0, function_name $L__info+12, \
               inlined_at 1 20 3\nld.param.u64 %x1, [a]; mov.b64 %x2, record; ld.param.u32 %r1, [%x2+12]; ld.param.u32 %r2, [last];\n\
               add.u32 %r1, %r1, %r2; st.global.u32 [%x1], %r1; ret; }\n.section .debug_str { .b8 1,2,3 { } }";
    let device = Device::new();
    let module = Module::load(ptx, &device).unwrap();
    let kernel = module.kernel("k").unwrap();
    assert_eq!(kernel.parameters, [(0, 8), (8, 16), (24, 4)]);
    let out = device.allocate(4).unwrap();
    let mut arguments = [0; 28];
    arguments[..8].copy_from_slice(&out.to_le_bytes());
    arguments[20] = 40;
    arguments[24] = 2;
    let shape = cuda::Launch { grid: [1; 3], block: [1; 3], dynamic_shared: 0, seed: 0, lenient: false, sample: None };
    cuda::launch(kernel, &shape, &arguments, &device.snapshot(0), 1).unwrap();
    assert_eq!(words(&device.read(out, 4).unwrap()), [42]);
}

#[test]
fn an_instruction_that_the_target_lacks_is_refused() {
    let of = |target: &str, body: &str| kernel("", body).replace("sm_90a", target);
    let body = "elect.sync %r1|%q1, 0xffffffff;";
    let error = refused(&of("sm_80", body)).to_string();
    assert!(error.contains("`elect.sync` needs sm_90, the module is for sm_80"), "{error}");
    assert!(Module::load(&of("sm_90", body), &Device::new()).is_ok());
    assert!(refused(&of("sm_banana", body)).to_string().contains("the target `sm_banana` is not known"));
}
