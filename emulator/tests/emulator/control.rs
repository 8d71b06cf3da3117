//! Instructions that stop a kernel, or change nothing that it can see.

use cuda::error::Misuse;

use crate::lab::{Run, kernel, words};

/// PTX ISA, "Miscellaneous Instructions: trap".
#[test]
fn a_trap_is_an_error_that_names_it() {
    let reached = |guard: &str| {
        let body = format!("setp.eq.u32 %q1, %t, 5; setp.gt.u32 %q2, %t, 31; {guard} trap;");
        Run::default().on(&kernel("", &body), &[])
    };
    let fault = reached("@%q1").unwrap_err();
    let Misuse::Invalid(fact) = &fault.misuse else { panic!("{fault}") };
    assert!(fact.contains("`trap`"), "{fact}");
    assert_eq!(fault.statement, "@%q1 trap");
    assert!(reached("@%q2").is_ok(), "no lane executes it");
}

/// PTX ISA, "Miscellaneous Instructions: nanosleep" and "Data Movement and Conversion Instructions: prefetch, prefetchu".
#[test]
fn sleeps_and_prefetches_change_nothing() {
    let body = "mov.u32 %r1, 3; nanosleep.u32 20; nanosleep.u32 %r1; prefetch.global.L2 [%p0]; prefetch.global.L1 [%p0+4];\n\
                st.global.u32 [%p0], %r1;";
    let run = Run { block: 1, ..Run::default() };
    assert_eq!(words(&run.on(&kernel("", body), &[Err(4)]).unwrap()[0]), [3]);
}
