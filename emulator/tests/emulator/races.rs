//! Races, found in whatever order the warps of a block happen to run.

use cuda::error::Misuse;

use crate::lab::{Run, bytes, kernel, words};

/// An mbarrier that is initialised already, or not yet. `%q1` is the first thread, `%q2` are all threads but those of its warp.
const PLACE: &str =
    "mov.u32 %r8, done; setp.eq.u32 %q1, %t, 0; setp.ge.u32 %q2, %t, 32; mov.u32 %r1, word; mov.u32 %r2, 7;\n";
const DECLARATIONS: &str = ".shared .align 8 .b64 done; .shared .align 16 .b8 word[256];";

/// What three warps do, the same in every order of them.
fn in_every_order(body: &str) -> Result<Vec<u32>, Vec<Misuse>> {
    let ptx = kernel(DECLARATIONS, &format!("{PLACE}{body}"));
    let (mut fine, mut faults) = (Vec::new(), Vec::new());
    for seed in 0..12 {
        let run = Run { block: 96, seed, ..Run::default() };
        match run.on(&ptx, &[Ok(bytes(&[5; 96], u32::to_le_bytes))]) {
            Ok(found) => fine.push(words(&found[0])),
            Err(fault) => faults.push(fault.misuse),
        }
    }
    assert!(fine.is_empty() || faults.is_empty(), "it depends on the order of the warps: {faults:?}\n{body}");
    fine.pop().ok_or(faults)
}

fn race(body: &str) {
    let faults = in_every_order(body).expect_err(body);
    assert!(faults.iter().all(|misuse| matches!(misuse, Misuse::Race { .. })), "{body}: {faults:?}");
}

/// What may be done to an mbarrier after its initialisation.
const OPERATIONS: [&str; 6] = [
    "@%q2 mbarrier.arrive.shared.b64 %x5, [%r8];",
    "@%q2 mbarrier.try_wait.parity.shared.b64 %q3, [%r8], 1;",
    "@%q2 mbarrier.test_wait.parity.shared.b64 %q3, [%r8], 1;",
    "@%q2 cp.async.mbarrier.arrive.noinc.shared.b64 [%r8];",
    "@%q2 cp.async.mbarrier.arrive.shared.b64 [%r8];",
    "setp.eq.u32 %q3, %t, 64; @%q3 mbarrier.inval.shared.b64 [%r8];",
];

/// PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier.init". Before it the bytes are not written, or it races.
#[test]
fn an_mbarrier_is_used_only_after_its_initialisation() {
    for operation in OPERATIONS {
        let init = "@%q1 mbarrier.init.shared.b64 [%r8], 64;";
        in_every_order(&format!("{init} bar.sync 0;\n{operation}")).expect(operation);
        let faults = in_every_order(&format!("{init}\n{operation}")).expect_err(operation);
        let expected = |misuse: &Misuse| matches!(misuse, Misuse::Race { .. } | Misuse::Uninitialised { .. });
        assert!(faults.iter().all(expected), "{operation}: {faults:?}");
        race(&format!("{init} bar.sync 0;\n{init}\n{operation}"));
        race(&format!("{init} bar.sync 0;\n@%q1 st.shared.u32 [%r8+4], %r2;\n{operation}"));
    }
}

#[test]
fn lanes_do_not_use_an_mbarrier_that_another_lane_of_their_warp_initialised_without_a_barrier() {
    for lane in [0, 1, 2, 31] {
        let init = format!("setp.eq.u32 %q3, %t, {lane}; @%q3 mbarrier.init.shared.b64 [%r8], 64;");
        let wait = "@!%q2 mbarrier.test_wait.parity.shared.b64 %q3, [%r8], 0;";
        race(&format!("{init}\n{wait}"));
        in_every_order(&format!("{init} bar.warp.sync 0xffffffff;\n{wait}")).expect(wait);
    }
}

#[test]
fn lanes_may_ask_for_different_phases() {
    let init = "@%q1 mbarrier.init.shared.b64 [%r8], 64; bar.sync 0;\n";
    let store = "mul.wide.u32 %x1, %t, 4; add.s64 %x1, %p0, %x1; st.global.u32 [%x1], %r4;";
    // Before the first phase is complete the one before it is.
    for shift in 0..5 {
        let ask = format!(
            "shr.u32 %r3, %t, {shift}; and.b32 %r3, %r3, 1; mbarrier.test_wait.parity.shared.b64 %q3, [%r8], %r3;"
        );
        let found = in_every_order(&format!("{init}{ask} selp.u32 %r4, 1, 0, %q3; {store}")).unwrap();
        assert_eq!(found, (0..96).map(|thread| thread >> shift & 1).collect::<Vec<u32>>());
    }
}

/// PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier.inval".
#[test]
fn an_mbarrier_that_is_invalid_is_none() {
    let invalid = "@%q1 mbarrier.init.shared.b64 [%r8], 64; @%q1 mbarrier.inval.shared.b64 [%r8]; bar.sync 0;\n";
    for operation in &OPERATIONS[..5] {
        let faults = in_every_order(&format!("{invalid}{operation}")).expect_err(operation);
        let expected = |misuse: &Misuse| matches!(misuse, Misuse::Invalid(fact) if fact.contains("no mbarrier"));
        assert!(faults.iter().all(expected), "{operation}: {faults:?}");
    }
    in_every_order(&format!("{invalid}@%q1 st.shared.u32 [%r8], %r2; bar.sync 0; ld.shared.u32 %r3, [%r8];")).unwrap();
}

#[test]
fn atomic_updates_race_with_other_accesses() {
    let start = "@%q1 st.shared.u32 [%r1], %r2; bar.sync 0;\n";
    let update = "@%q2 atom.shared.add.u32 %r3, [%r1], 1;";
    for other in [
        "@%q1 st.shared.u32 [%r1], %r2;",
        "@%q1 ld.shared.u32 %r4, [%r1];",
        "@%q1 st.shared.u8 [%r1+3], %r2;",
        "@%q1 cp.async.ca.shared.global [%r1], [%p0], 4; cp.async.wait_all;",
        // Its own update comes last, and that of the others is remembered.
        "@%q1 atom.shared.add.u32 %r3, [%r1], 1; @%q1 ld.shared.u32 %r4, [%r1];",
        "@%q1 atom.shared.add.u32 %r3, [%r1], 1; @%q1 st.shared.u32 [%r1], %r2;",
    ] {
        race(&format!("{start}{other}\n{update}"));
        race(&format!("{start}{update}\n{other}"));
        in_every_order(&format!("{start}{other} bar.sync 0;\n{update} bar.sync 0; ld.shared.u32 %r4, [%r1];"))
            .expect(other);
    }
}

#[test]
fn atomic_updates_do_not_race_with_each_other() {
    let body = "@%q1 st.shared.u32 [%r1], 0; bar.sync 0; atom.shared.add.u32 %r3, [%r1], %t; atom.shared.max.u32 %r3, [%r1], 1;\n\
                bar.sync 0; ld.shared.u32 %r4, [%r1]; @%q1 st.global.u32 [%p0], %r4;";
    assert_eq!(in_every_order(body).unwrap()[0], (0..96).sum::<u32>());
}

/// PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy": they are weak, and have no order with what follows.
#[test]
fn copies_in_flight_race_with_updates_and_with_writes_to_their_source() {
    let copy = "@%q1 st.shared.u32 [%r1], %r2; @%q1 cp.async.ca.shared.global [%r1], [%p0], 4;\n";
    race(&format!("{copy}@%q1 atom.shared.add.u32 %r3, [%r1], 1; cp.async.wait_all;"));
    race(&format!("{copy}@%q1 st.global.u32 [%p0], %r2; cp.async.wait_all;"));
    in_every_order(&format!("{copy}cp.async.wait_all; @%q1 st.global.u32 [%p0], %r2;")).unwrap();
}

/// PTX ISA, "Data Movement and Conversion Instructions: ld.global.nc": what it reads may not change while the kernel runs, not even by the
/// same thread.
#[test]
fn what_is_read_as_constant_is_not_written() {
    let run = |body: &str| {
        let run = Run { grid: 2, block: 1, ..Run::default() };
        let place = "mov.u32 %r1, %ctaid.x; mul.wide.u32 %x1, %r1, 4; add.s64 %x1, %p0, %x1; add.s64 %x2, %p1, %x1; sub.s64 %x2, %x2, %p0;\n";
        run.on(&kernel("", &format!("{place}{body}")), &[Ok(vec![0; 8]), Ok(vec![0; 8])]).map_err(|fault| fault.misuse)
    };
    for body in [
        "st.global.u32 [%x1], %r1; ld.global.nc.u32 %r2, [%x1];",
        "ld.global.nc.u32 %r2, [%x1]; st.global.u32 [%x1], %r1;",
        "ld.global.nc.u32 %r2, [%x1]; ld.global.u32 %r2, [%x1]; st.global.u32 [%x1], %r1;",
        "ld.global.nc.u32 %r2, [%x1]; red.global.add.u32 [%x1], 1;",
    ] {
        let found = run(body);
        assert!(matches!(found, Err(Misuse::Race { space: "global", .. })), "{body}: {found:?}");
    }
    run("ld.global.nc.u32 %r2, [%p0]; ld.global.u32 %r3, [%p0]; ld.global.u32 %r3, [%x2]; st.global.u32 [%x2], %r2;")
        .unwrap();
}
