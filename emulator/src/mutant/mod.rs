//! Mutants: kernels with one mistake each, which tests should find.
//!
//! [`candidates`] lists what can be changed in a kernel, in the order of its statements, and [`Mutant::apply`] makes one of these
//! changes. Equal PTX has equal lists.

mod change;
mod text;

use std::fmt;

use crate::ptx::{KernelSource, Statement};

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A barrier of the block or of a warp is removed.
    Barrier,
    /// A copy, its commit, its wait or an arrival is removed, or waits for less; an mbarrier expects another count.
    Copy,
    /// A fence is removed. The emulator does not see the difference.
    Fence,
    /// A guard is negated or dropped; a branch is taken always or never.
    Guard,
    /// A comparison includes or excludes equality, or becomes its opposite.
    Compare,
    /// A selection takes the other value; `and` of predicates becomes `or`, and the other way around.
    Select,
    /// An address moves by the size of the access.
    Address,
    /// Registers of a tensor core's factor change places, or its sum starts from zero.
    Product,
    /// An exchange between lanes takes another lane, leaves out one, or asks for any instead of all.
    Shuffle,
    /// A store or an atomic update is removed.
    Store,
    /// An operation becomes another: a sum a difference, a shift one to the other side. Or it loses an input: a product its second
    /// factor, a sum of products the addend, a number its negation.
    Arithmetic,
    /// A constant is another: an integer by one, a float twice as large.
    Constant,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Barrier => "barrier",
            Self::Copy => "copy",
            Self::Fence => "fence",
            Self::Guard => "guard",
            Self::Compare => "compare",
            Self::Select => "select",
            Self::Address => "address",
            Self::Product => "product",
            Self::Shuffle => "shuffle",
            Self::Store => "store",
            Self::Arithmetic => "arithmetic",
            Self::Constant => "constant",
        })
    }
}

/// One change of a kernel.
#[derive(Debug, Clone)]
pub struct Mutant {
    pub kind: Kind,
    /// The index of the statement in its kernel.
    at: usize,
    /// The text before.
    pub before: String,
    /// The line of the CUDA source; 0 if unknown.
    pub line: u32,
    /// What takes its place.
    after: Statement,
}

impl Mutant {
    /// Makes the change.
    pub fn apply(self, kernel: &mut KernelSource) {
        let original = std::mem::replace(&mut kernel.statements[self.at], self.after);
        kernel.changed = Some((self.at, original));
    }

    /// What takes the place of the statement.
    pub fn after(&self) -> &str {
        &self.after.text
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, before, line, after, .. } = self;
        write!(f, "{kind}\t{line}\t{before}\t{}", after.text)
    }
}

/// Every change of a kernel, in the order of its statements.
pub fn candidates(kernel: &KernelSource) -> Vec<Mutant> {
    let registers = change::Registers::of(kernel);
    let mut all = Vec::new();
    for (at, statement) in kernel.statements.iter().enumerate() {
        for (kind, mut after) in change::of(statement, &registers) {
            if after.text == statement.text {
                after.text = text::of(&after);
            }
            all.push(Mutant { kind, at, before: statement.text.clone(), line: statement.line, after });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Device;
    use crate::{Launch, Module, ptx};

    /// The changes of a kernel of these statements: kind, and what takes the place of the statement.
    fn changes(body: &str) -> Vec<(Kind, String)> {
        let kernel = kernel(body);
        candidates(&kernel).iter().map(|one| (one.kind, one.after().to_string())).collect()
    }

    fn source(body: &str) -> ptx::ModuleSource {
        let text = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 a)\n{{\n.reg .pred %p<4>; .reg .b32 %r<32>; \
             .reg .f32 %f<8>; .reg .b64 %x<4>;\nL: {body}\nret;\n}}\n"
        );
        ptx::parse(&text).unwrap()
    }

    fn kernel(body: &str) -> KernelSource {
        source(body).kernels.remove(0)
    }

    /// Checks what takes the place of statements by the changes of a kind.
    fn check(body: &str, kind: Kind, expected: &[&str]) {
        let changes = changes(body).into_iter().filter(|(other, _)| *other == kind);
        let found: Vec<_> = changes.map(|(_, after)| after).collect();
        let expected: Vec<_> = expected.iter().map(|after| after.trim_end_matches(';')).collect();
        assert_eq!(found, expected, "{body}");
    }

    #[test]
    fn barriers_fences_and_copies_are_removed() {
        check("bar.sync 0;", Kind::Barrier, &["(removed)"]);
        check("bar.warp.sync -1;", Kind::Barrier, &["(removed)"]);
        check("fence.proxy.async;", Kind::Fence, &["(removed)"]);
        check("cp.async.commit_group;", Kind::Copy, &["(removed)"]);
        check("cp.async.wait_all;", Kind::Copy, &["(removed)"]);
        check("cp.async.wait_group 1;", Kind::Copy, &["(removed)", "cp.async.wait_group 2;"]);
    }

    #[test]
    fn mbarriers_lose_arrivals_and_waits() {
        let init = "mbarrier.init.shared::cta.b64 [%r1], 128;";
        check(init, Kind::Copy, &["mbarrier.init.shared::cta.b64 [%r1], 129"]);
        check("mbarrier.arrive.shared::cta.b64 %x1, [%r1];", Kind::Copy, &["(removed)"]);
        check("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r1];", Kind::Copy, &["(removed)"]);
        let wait = "mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2;";
        check(wait, Kind::Copy, &["setp.eq.u32 %p1, 0, 0"]); // always complete
        let copy = "cp.async.cg.shared.global [%r1], [%x1], 16, %r2;";
        check(copy, Kind::Copy, &["(removed)", "cp.async.cg.shared.global [%r1], [%x1], 16"]);
    }

    #[test]
    fn guards_are_negated_and_dropped() {
        check("@%p1 mov.u32 %r1, 0;", Kind::Guard, &["@!%p1 mov.u32 %r1, 0;", "mov.u32 %r1, 0;"]);
        check("@!%p1 bra L;", Kind::Guard, &["@%p1 bra L;", "bra L;", "(removed)"]);
    }

    #[test]
    fn comparisons_and_selections_become_others() {
        check("setp.lt.u32 %p1, %r1, 5;", Kind::Compare, &["setp.le.u32 %p1, %r1, 5;"]);
        check("setp.geu.f32 %p1, %f1, %f2;", Kind::Compare, &["setp.gtu.f32 %p1, %f1, %f2;"]);
        check("setp.eq.s32 %p1, %r1, 0;", Kind::Compare, &["setp.ne.s32 %p1, %r1, 0;"]);
        check("selp.b32 %r1, 1, 2, %p1;", Kind::Select, &["selp.b32 %r1, 2, 1, %p1;"]);
        check("and.pred %p1, %p2, %p3;", Kind::Select, &["or.pred %p1, %p2, %p3;"]);
        check("and.b32 %r1, %r2, %r3;", Kind::Select, &[]);
    }

    #[test]
    fn addresses_move_by_the_size_of_the_access() {
        check(
            "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%x1+-16];",
            Kind::Address,
            &["ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%x1];"],
        );
        check("st.shared.u16 [%r1], %r2;", Kind::Address, &["st.shared.u16 [%r1+2], %r2;"]);
        check("ld.param.u64 %x1, [a];", Kind::Address, &[]);
        let ldmatrix = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r2];";
        check(ldmatrix, Kind::Address, &["ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r2+16];"]);
        // A sum that is an address.
        check(
            "add.s64 %x2, %x1, 8; ld.global.u32 %r1, [%x2];",
            Kind::Address,
            &["add.s64 %x2, %x1, 12;", "ld.global.u32 %r1, [%x2+4];"],
        );
    }

    #[test]
    fn products_take_other_registers() {
        let start = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}";
        let sums = "{%f0, %f1, %f2, %f3}";
        check(
            &format!("{start}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {sums};"),
            Kind::Product,
            &[
                &format!("{start}, {{%r1, %r0, %r2, %r3}}, {{%r4, %r5}}, {sums};"),
                &format!("{start}, {{%r0, %r1, %r2, %r3}}, {{%r5, %r4}}, {sums};"),
                &format!(
                    "{start}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{0f00000000, 0f00000000, 0f00000000, 0f00000000}};"
                ),
            ],
        );
    }

    #[test]
    fn exchanges_take_other_lanes() {
        check(
            "shfl.sync.bfly.b32 %r1, %r2, 16, 31, -1;",
            Kind::Shuffle,
            &[
                "shfl.sync.bfly.b32 %r1, %r2, 8, 31, -1;",
                "shfl.sync.bfly.b32 %r1, %r2, 16, 0, -1;",
                "shfl.sync.bfly.b32 %r1, %r2, 16, 31, 2147483647;",
            ],
        );
        check(
            "vote.sync.any.pred %p1, %p2, -1;",
            Kind::Shuffle,
            &["vote.sync.any.pred %p1, %p2, 2147483647;", "vote.sync.all.pred %p1, %p2, -1;"],
        );
    }

    #[test]
    fn stores_are_removed() {
        check("st.shared.u16 [%r1], %r2;", Kind::Store, &["(removed)"]);
        check("@%p1 st.global.v2.f32 [%x1], {%f1, %f2};", Kind::Store, &["(removed)"]);
        check("red.global.add.f32 [%x1], %f1;", Kind::Store, &["(removed)"]);
        check("ld.shared.u16 %r2, [%r1];", Kind::Store, &[]);
    }

    #[test]
    fn operations_become_others_or_lose_an_input() {
        let becomes = |body: &str, expected: &[&str]| check(body, Kind::Arithmetic, expected);
        becomes("add.f32 %f1, %f2, %f3;", &["sub.f32 %f1, %f2, %f3"]);
        becomes("max.u32 %r1, %r2, 5;", &["min.u32 %r1, %r2, 5"]);
        becomes("shr.u32 %r1, %r2, 4;", &["shl.u32 %r1, %r2, 4"]);
        becomes("xor.b32 %r1, %r2, %r3;", &["or.b32 %r1, %r2, %r3"]);
        becomes("and.pred %p1, %p2, %p3;", &[]);
        becomes("rem.u32 %r1, %r2, %r3;", &["div.u32 %r1, %r2, %r3"]);
        becomes("div.rn.f32 %f1, %f2, %f3;", &["div.rn.f32 %f1, %f2, 0f3F800000"]);
        becomes("mul.wide.u32 %x1, %r1, %r2;", &["mul.wide.u32 %x1, %r1, 1"]);
        becomes("mul.lo.s32 %r1, %r2, 1;", &[]);
        let sum = ["fma.rn.f32 %f1, %f2, 0f3F800000, %f3", "fma.rn.f32 %f1, %f2, %f3, 0f00000000"];
        becomes("fma.rn.f32 %f1, %f2, %f3, %f3;", &sum);
        becomes("fma.rn.f32 %f1, %f2, 0f3F800000, 0f00000000;", &[]);
        becomes("mul.bf16x2 %r1, %r2, %r3;", &["mul.bf16x2 %r1, %r2, 1065369472"]);
        becomes("neg.f32 %f1, %f2;", &["mov.b32 %f1, %f2"]);
        becomes("not.pred %p1, %p2;", &["mov.pred %p1, %p2"]);
        becomes("copysign.f32 %f1, %f2, %f3;", &["mov.b32 %f1, %f3"]);
        becomes("cvt.rni.s32.f32 %r1, %f1;", &["cvt.rzi.s32.f32 %r1, %f1"]);
        becomes("cvt.sat.f32.f32 %f1, %f2;", &["cvt.f32.f32 %f1, %f2"]);
        becomes("cvt.rn.f32.s8 %f1, %r1;", &["cvt.rn.f32.u8 %f1, %r1"]);
        becomes("cvt.rn.f16.f32 %r1, %f1;", &[]);
    }

    #[test]
    fn constants_become_others() {
        let becomes = |body: &str, expected: &[&str]| check(body, Kind::Constant, expected);
        becomes("shl.b32 %r1, %r2, 4;", &["shl.b32 %r1, %r2, 5"]);
        becomes("and.b32 %r1, %r2, 15;", &["and.b32 %r1, %r2, 14"]);
        becomes("add.s32 %r1, %r2, -1;", &["add.s32 %r1, %r2, -2"]);
        becomes("mad.lo.s32 %r1, %r2, 6, 8;", &["mad.lo.s32 %r1, %r2, 7, 8", "mad.lo.s32 %r1, %r2, 6, 9"]);
        becomes("lop3.b32 %r1, %r2, %r3, %r4, 0x80;", &["lop3.b32 %r1, %r2, %r3, %r4, 129"]);
        becomes("mov.u32 %r1, 0;", &["mov.u32 %r1, 1"]);
        becomes("mov.pred %p1, -1;", &["mov.pred %p1, 0"]);
        becomes("mov.b32 %r1, 0f3F800000;", &["mov.b32 %r1, 0f40000000"]);
        becomes("mul.f32 %f1, %f2, 0fBFC00000;", &["mul.f32 %f1, %f2, 0fC0400000"]);
        // Zero, and what twice is infinite.
        becomes(
            "selp.f32 %f1, 0f80000000, 0fFF7FFFFF, %p1;",
            &["selp.f32 %f1, 0f3F800000, 0fFF7FFFFF, %p1", "selp.f32 %f1, 0f80000000, 0f00000000, %p1"],
        );
        // The other way than equality.
        becomes("setp.lt.u32 %p1, %r1, 5;", &["setp.lt.u32 %p1, %r1, 4"]);
        becomes("setp.gt.s32 %p1, %r1, -1;", &["setp.gt.s32 %p1, %r1, 0"]);
        becomes("setp.ge.u32 %p1, %r1, 0;", &[]);
        // The constants of addresses, and of exchanges.
        becomes("mov.u32 %r1, 16; shfl.sync.bfly.b32 %r2, %r3, %r1, 31, -1;", &[]);
        becomes("add.s64 %x2, %x1, 8; ld.global.u32 %r1, [%x2];", &[]);
        becomes("mov.u32 %r1, 8; ld.shared.u32 %r2, [%r1+16];", &[]);
        becomes("bar.sync 0;", &[]);
    }

    #[test]
    fn a_mistake_without_effect_is_told_from_others() {
        let of_kind = |kind: Kind, body: &str, number: usize| {
            let mut source = source(body);
            let kernel = &mut source.kernels[0];
            candidates(kernel).into_iter().filter(|one| one.kind == kind).nth(number).unwrap().apply(kernel);
            let device = Device::new();
            let module = Module::of(&source, &device).unwrap();
            let shape =
                Launch { grid: [1, 1, 1], block: [32, 1, 1], dynamic_shared: 4, seed: 0, lenient: false, sample: None };
            crate::launch(&module.kernels[0], &shape, &[0; 8], &device.snapshot(0), 1).unwrap();
            module.kernels[0].changed.as_ref().unwrap().had_effect()
        };
        let had_effect = |kind, body: &str| of_kind(kind, body, 0);
        // Lane 31 is at the limit of 31, and none is at that of 40.
        assert!(had_effect(Kind::Compare, "mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 31;"));
        assert!(!had_effect(Kind::Compare, "mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 40;"));
        // A branch that is never taken: negated, dropped and removed.
        let branch = "mov.u32 %r1, %tid.x; setp.gt.u32 %p1, %r1, 40; @%p1 bra M; M:";
        assert_eq!([0, 1, 2].map(|number| of_kind(Kind::Guard, branch, number)), [true, true, false]);
        // Sums that begin with zero.
        let product = |sum: f32| {
            format!(
                "mov.b32 %r1, 15360; mov.f32 %f0, 0f{:08X}; mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 \
                 {{%f4, %f5, %f6, %f7}}, {{%r1, %r1, %r1, %r1}}, {{%r1, %r1}}, {{%f0, %f0, %f0, %f0}};",
                sum.to_bits()
            )
        };
        assert_eq!([0.0, 1.0].map(|sum| had_effect(Kind::Product, &product(sum))), [false, true]);
        // A maximum of equal numbers, and a bit that no lane has.
        assert!(!had_effect(Kind::Arithmetic, "mov.u32 %r1, %tid.x; max.u32 %r2, %r1, %r1;"));
        assert!(had_effect(Kind::Arithmetic, "mov.u32 %r1, %tid.x; max.u32 %r2, %r1, 5;"));
        assert!(!had_effect(Kind::Constant, "mov.u32 %r1, %tid.x; and.b32 %r1, %r1, %r1; setp.ge.u32 %p1, %r1, 60;"));
        assert!(had_effect(Kind::Constant, "mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 31;"));
        // A store that no lane executes.
        let store = |limit| format!("mov.u32 %r1, %tid.x; setp.ge.u32 %p1, %r1, {limit}; @%p1 st.shared.u32 [0], %r1;");
        assert_eq!([31, 32].map(|limit| had_effect(Kind::Store, &store(limit))), [true, false]);
    }

    #[test]
    fn lanes_race_where_a_barrier_of_their_warp_is_missing() {
        let body = "mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; st.shared.u32 [%r2], %r1; bar.warp.sync -1;\n\
                    xor.b32 %r3, %r2, 4; ld.shared.u32 %r4, [%r3];";
        let run = |is_missing: bool| {
            let mut source = source(body);
            if is_missing {
                let kernel = &mut source.kernels[0];
                let mut all = candidates(kernel);
                let at = all.iter().position(|candidate| candidate.kind == Kind::Barrier).unwrap();
                all.swap_remove(at).apply(kernel);
            }
            let device = Device::new();
            let module = Module::of(&source, &device).unwrap();
            let shape = Launch {
                grid: [1, 1, 1],
                block: [32, 1, 1],
                dynamic_shared: 128,
                seed: 0,
                lenient: false,
                sample: None,
            };
            crate::launch(&module.kernels[0], &shape, &[0; 8], &device.snapshot(0), 1)
                .map_err(|fault| fault.to_string())
        };
        assert!(run(false).is_ok());
        assert!(run(true).is_err_and(|fault| fault.contains("of this warp")));
    }

    #[test]
    fn every_mutant_can_be_loaded_and_differs_in_one_statement() {
        let body = "mov.u32 %r1, 0; setp.lt.u32 %p1, %r1, 5; @%p1 bra L; bar.sync 0; shfl.sync.bfly.b32 %r1, %r1, 16, 31, -1;\n\
                    cp.async.wait_group 1; mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r1; @%p1 st.shared.u32 [%r1+4], %r1;\n\
                    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};\n\
                    mad.lo.s32 %r1, %r2, 3, %r4; fma.rn.f32 %f1, %f2, %f3, 0f3F800000; not.b32 %r1, %r2; shr.u32 %r1, %r1, 4;\n\
                    cvt.sat.f32.f32 %f1, %f2; lop3.b32 %r1, %r1, %r2, %r3, 0x80; div.u32 %r1, %r1, %r2; mov.f32 %f1, 0f00000000;";
        let original = kernel(body);
        let count = candidates(&original).len();
        assert_eq!(count, 33);
        for number in 0..count {
            let mut changed = source(body);
            let one = candidates(&changed.kernels[0]).swap_remove(number);
            let (before, after) = (one.before.clone(), one.after().to_string());
            assert_ne!(before, after);
            one.apply(&mut changed.kernels[0]);
            let statements = original.statements.iter().zip(&changed.kernels[0].statements);
            let found: Vec<_> =
                statements.map(|(old, new)| (&old.text, &new.text)).filter(|(old, new)| old != new).collect();
            assert_eq!(found, [(&before, &after)]);
            assert!(Module::of(&changed, &Device::new()).is_ok(), "{after}");
        }
    }
}
