//! What the checks find, and how a fault reads.

use cuda::error::Misuse;

use crate::lab::{CANARY, Run, kernel};

fn misuse(declarations: &str, body: &str) -> Misuse {
    Run { block: 64, ..Run::default() }.misuse(&kernel(declarations, body), &[Ok(vec![0; 256]), Err(256)])
}

#[test]
fn accesses_outside_of_every_allocation_are_found() {
    let found = misuse("", "mul.wide.u32 %x1, %t, 8; add.s64 %x1, %p0, %x1; ld.global.u32 %r1, [%x1];");
    let Misuse::OutOfBounds { space: "global", bytes: 4, limit, .. } = found else { panic!("{found:?}") };
    assert!(limit.contains("the one below"), "{limit}");
    let beyond = "mul.lo.u32 %r1, %t, 4; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; st.shared.u32 [%r1], %t;";
    assert!(matches!(misuse(".shared .align 4 .b8 tile[252];", beyond), Misuse::OutOfBounds { space: "shared", .. }));
    let beyond = "st.local.u32 [own+8], %t;";
    assert!(matches!(misuse(".local .align 4 .b8 own[8];", beyond), Misuse::OutOfBounds { space: "local", .. }));
    assert!(matches!(misuse("", "ld.param.u32 %r1, [d+8];"), Misuse::OutOfBounds { space: "parameter", .. }));
}

#[test]
fn accesses_that_are_not_aligned_are_found() {
    for (declarations, body) in [
        ("", "ld.global.u32 %r1, [%p0+2];"),
        ("", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%p0+8];"),
        (".shared .align 16 .b8 tile[64];", "mov.u32 %r1, tile; st.shared.u32 [%r1+6], %t;"),
    ] {
        assert!(matches!(misuse(declarations, body), Misuse::Misaligned { .. }), "{body}");
    }
}

#[test]
fn reads_of_what_nothing_has_written_are_found() {
    for (declarations, body) in [
        ("", "ld.global.u32 %r1, [%p1];"),
        (".shared .align 4 .b8 tile[4];", "mov.u32 %r1, tile; ld.shared.u32 %r2, [%r1];"),
        (".local .align 4 .b8 own[4];", "ld.local.u32 %r1, [own];"),
        ("", "add.u32 %r1, %r2, 1;"),
        ("", "@%q1 bra END; END:"),
        // Only the lanes that wrote the register may read it.
        ("", "setp.lt.u32 %q1, %t, 5; @%q1 mov.u32 %r1, 1; add.u32 %r2, %r1, 1;"),
        ("", "setp.lt.u32 %q1, %t, 5; @%q1 mov.u32 %r1, 1; @%q1 shfl.sync.idx.b32 %r2, %r1, 7, 31, 31;"),
    ] {
        let found = misuse(declarations, body);
        assert!(matches!(found, Misuse::Uninitialised { .. } | Misuse::Invalid(_)), "{body}: {found:?}");
    }
}

#[test]
fn canaries_of_the_host_count_as_unwritten() {
    let words: Vec<u8> = [1, 2, CANARY, 4].into_iter().flat_map(u32::to_le_bytes).collect();
    let run = Run::default();
    let read = |body: &str| run.on(&kernel("", body), &[Ok(words.clone())]).map(|_| ());
    assert!(read("ld.global.v2.u32 {%r1, %r2}, [%p0];").is_ok());
    assert!(read("mov.u32 %r1, 5; st.global.u32 [%p0+8], %r1; ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%p0];").is_ok());
    let fault = read("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%p0];").unwrap_err();
    assert!(matches!(fault.misuse, Misuse::Uninitialised { .. }), "{:?}", fault.misuse);
}

#[test]
fn memory_written_by_one_block_is_not_written_for_the_next() {
    let ptx = kernel(
        ".shared .align 4 .b8 tile[4];",
        "mov.u32 %r1, %ctaid.x; setp.eq.u32 %q1, %r1, 0; mov.u32 %r2, tile; @%q1 st.shared.u32 [%r2], %r1; bar.sync 0;\n\
         ld.shared.u32 %r3, [%r2];",
    );
    let run = Run { grid: 2, block: 1, ..Run::default() };
    let fault = run.on(&ptx, &[]).unwrap_err();
    assert!(matches!(fault.misuse, Misuse::Uninitialised { .. }));
    assert_eq!(fault.block, [1, 0, 0]);
}

/// Warps have no order without a barrier, in whatever order they happen to run.
#[test]
fn warps_that_race_on_shared_memory_are_found_in_every_order() {
    let declarations = ".shared .align 4 .b8 tile[256];";
    let place = "mul.lo.u32 %r1, %t, 4; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; xor.b32 %r3, %t, 32; mul.lo.u32 %r3, %r3, 4;\n\
                 add.u32 %r3, %r3, %r2;\n";
    let races = [
        ("a read of what another warp writes", "st.shared.u32 [%r1], %t; ld.shared.u32 %r4, [%r3];"),
        (
            "a write after a read",
            "st.shared.u32 [%r1], %t; bar.sync 0; ld.shared.u32 %r4, [%r3]; st.shared.u32 [%r1], %r4;",
        ),
        ("two writes", "st.shared.u32 [%r2], %t;"),
    ];
    for (what, body) in races {
        for seed in 0..4 {
            let run = Run { block: 64, seed, ..Run::default() };
            let found = run.misuse(&kernel(declarations, &format!("{place}{body}")), &[]);
            let expected = matches!(found, Misuse::Race { space: "shared", .. } | Misuse::Uninitialised { .. });
            assert!(expected, "{what}, seed {seed}: {found:?}");
        }
    }
    let fine = "st.shared.u32 [%r1], %t; bar.sync 0; ld.shared.u32 %r4, [%r3]; bar.sync 0; st.shared.u32 [%r1], %r4;";
    let run = Run { block: 64, ..Run::default() };
    run.on(&kernel(declarations, &format!("{place}{fine}")), &[]).unwrap();
}

/// `%r1` is the word of a lane, `%r2` that of its neighbour.
#[test]
fn lanes_of_a_warp_race_without_a_barrier() {
    let (declarations, place) = (
        ".shared .align 4 .b8 s[256];",
        "mov.u32 %r3, s; shl.b32 %r1, %t, 2; add.u32 %r2, %r1, 4; add.u32 %r1, %r1, %r3; add.u32 %r2, %r2, %r3;\n\
         st.shared.u32 [%r1], 1;",
    );
    let exchange = "shfl.sync.bfly.b32 %r5, %t, 1, 31, -1;";
    let run = |body: &str| Run::default().on(&kernel(declarations, &format!("{place}{body}")), &[]);
    let last = "setp.lt.u32 %q1, %t, 31;";
    for (what, body) in [
        ("a read of what another lane wrote", format!("{last} {exchange} @%q1 ld.shared.u32 %r4, [%r2];")),
        ("a write of what another lane wrote", format!("{last} @%q1 st.shared.u32 [%r2], 2;")),
        (
            "a write of what another lane read",
            format!("{last} bar.warp.sync -1; @%q1 ld.shared.u32 %r4, [%r2]; st.shared.u32 [%r1], 2;"),
        ),
        ("one place for all", "st.shared.u32 [%r3+128], 1;".to_string()),
    ] {
        let found = run(&body).expect_err(what).misuse;
        assert!(
            matches!(&found, Misuse::Race { space: "shared", other, .. } if other.contains("of this warp")),
            "{found:?}"
        );
    }
    let ordered = format!(
        "{last} bar.warp.sync -1; @%q1 ld.shared.u32 %r4, [%r2]; bar.warp.sync -1; st.shared.u32 [%r1], 2;\n\
         bar.sync 0; @%q1 ld.shared.u32 %r4, [%r2];"
    );
    assert!(run(&ordered).is_ok());
}

#[test]
fn blocks_that_race_on_global_memory_are_found() {
    let block = "mov.u32 %r1, %ctaid.x; mul.wide.u32 %x1, %r1, 4; add.s64 %x1, %p0, %x1;\n";
    let races = [
        ("two writes", "st.global.u32 [%p0], %r1;"),
        ("a read of what another block writes", "st.global.u32 [%x1], %r1; ld.global.u32 %r2, [%p0];"),
        (
            "an update and a write",
            "setp.eq.u32 %q1, %r1, 0; @%q1 st.global.u32 [%p0], %r1; @!%q1 red.global.add.u32 [%p0], 1;",
        ),
    ];
    for (what, body) in races {
        for threads in [1, 2] {
            let run = Run { grid: 2, block: 1, threads, ..Run::default() };
            let found = run.misuse(&kernel("", &format!("{block}{body}")), &[Ok(vec![0; 8])]);
            assert!(matches!(found, Misuse::Race { space: "global", .. }), "{what}: {found:?}");
        }
    }
    let fine = "ld.global.u32 %r2, [%p1]; st.global.u32 [%x1], %r2; red.global.add.u32 [%p2], 1;";
    let run = Run { grid: 2, block: 1, threads: 2, ..Run::default() };
    run.on(&kernel("", &format!("{block}{fine}")), &[Err(8), Ok(vec![1; 4]), Ok(vec![0; 4])]).unwrap();
}

#[test]
fn barriers_that_not_all_threads_reach_are_found() {
    let half = "setp.lt.u32 %q1, %t, 16; @%q1 bar.sync 0;";
    assert!(matches!(misuse("", half), Misuse::Deadlock { .. }), "half of a warp");
    let apart = "setp.lt.u32 %q1, %t, 16; @%q1 bra A; bar.sync 0; bra.uni B; A: bar.sync 0; B:";
    assert!(matches!(misuse("", apart), Misuse::Deadlock { .. }), "two places of one warp");
    let numbers = "setp.lt.u32 %q1, %t, 32; @%q1 bra A; bar.sync 1; bra.uni B; A: bar.sync 2; B:";
    assert!(matches!(misuse("", numbers), Misuse::Deadlock { .. }), "two barriers");
    let lanes =
        "setp.lt.u32 %q1, %t, 16; @%q1 bra A; bar.warp.sync -1; bra.uni B; A: vote.sync.any.pred %q2, %q1, -1; B:";
    assert!(matches!(misuse("", lanes), Misuse::Deadlock { .. }), "lanes that wait for each other");
}

#[test]
fn a_fault_says_where_it_happened() {
    let body = ".loc 1 77 5\nsetp.ne.u32 %q1, %t, 35; @%q1 bra END; ld.global.u32 %r1, [%p0+256]; END:";
    let run = Run { grid: 3, block: 64, ..Run::default() };
    let fault = run.on(&kernel("", body), &[Ok(vec![0; 256])]).unwrap_err();
    let text = fault.to_string();
    assert!(
        text.starts_with("kernel `k`, block (0, 0, 0), warp 1, lane 3, `ld.global.u32 %r1, [%p0+256]` (line 77 of its source): 4 bytes"),
        "{text}"
    );
}

#[test]
fn a_launch_that_no_device_accepts_is_refused() {
    let device = cuda::Device::new();
    let module = cuda::Module::load(&kernel("", "ret;").replace(")\n{", ")\n.maxntid 1024, 1, 1\n{"), &device).unwrap();
    let few = cuda::Module::load(&kernel("", "ret;").replace(")\n{", ")\n.maxntid 64, 2\n{"), &device).unwrap();
    let found = |module: &cuda::Module, grid, block, dynamic_shared| {
        let launch = cuda::Launch { grid, block, dynamic_shared, seed: 0, lenient: false, sample: None };
        cuda::Limits::of(90).check(module.kernel("k").unwrap(), &launch)
    };
    let refused = |grid, block| found(&module, grid, block, 0).unwrap_err();
    assert_eq!(found(&module, [1, 65535, 1], [32, 32, 1], 48 << 10), Ok(()));
    assert!(refused([1, 1, 1], [32, 33, 1]).contains("1056 threads in a block; 1024 are possible"));
    assert!(refused([1, 1, 1], [1, 1, 65]).contains("a block of [1, 1, 65] threads"));
    assert!(refused([1, 65536, 1], [1, 1, 1]).contains("a grid of [1, 65536, 1] blocks"));
    assert!(refused([1, 0, 1], [32, 1, 1]).contains("is empty"));
    assert_eq!(found(&few, [1, 1, 1], [128, 1, 1], 0), Ok(()));
    assert!(found(&few, [1, 1, 1], [129, 1, 1], 0).unwrap_err().contains("129 threads in a block; 128 are possible"));
}

#[test]
fn more_shared_memory_must_be_asked_for() {
    let device = cuda::Device::new();
    let module = cuda::Module::load(&kernel(".shared .b8 own[1024];", "ret;"), &device).unwrap();
    let kernel = module.kernel("k").unwrap();
    let check = |limits: cuda::Limits, dynamic_shared| {
        let launch =
            cuda::Launch { grid: [1; 3], block: [1; 3], dynamic_shared, seed: 0, lenient: false, sample: None };
        limits.check(kernel, &launch)
    };
    let limits = cuda::Limits::of(90);
    assert_eq!(check(limits, 47 << 10), Ok(()));
    assert!(check(limits, 48 << 10).unwrap_err().contains("may have 48128"));
    assert!(limits.allows_shared(kernel, 226 << 10) && !limits.allows_shared(kernel, 227 << 10));
    assert!(!cuda::Limits::of(80).allows_shared(kernel, 163 << 10));
    kernel.allow_dynamic_shared(100 << 10);
    assert_eq!(check(limits, 100 << 10), Ok(()));
    assert!(check(limits, (100 << 10) + 1).is_err());
}

#[test]
fn a_lane_that_does_not_name_itself_is_found() {
    for body in ["shfl.sync.bfly.b32 %r1, %t, 1, 31, 0x7fffffff;", "vote.sync.any.pred %q1, %q2, 0x7fffffff;"] {
        let found = misuse("", &format!("setp.eq.u32 %q2, %t, 0; {body}"));
        assert!(matches!(&found, Misuse::Invalid(fact) if fact.contains("not among the lanes")), "{found:?}");
    }
}
