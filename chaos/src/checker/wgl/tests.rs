use super::*;

const STEPS_MAX: u64 = 100_000;

fn step(start_ns: u64, end_ns: u64, what: Effect) -> Step {
    Step { start_ns, end_ns, what }
}

#[test]
fn a_read_of_an_overwritten_value_is_a_violation_unless_it_overlaps_the_write() {
    let writes = [step(0, 10, Effect::Write(1)), step(20, 30, Effect::Write(2))];
    let with = |start, end, value| {
        let steps = [writes[0], writes[1], step(start, end, Effect::Read(value))];
        check(&steps, None, STEPS_MAX)
    };
    assert_eq!(with(40, 50, 1), Verdict::Violation);
    assert_eq!(with(25, 50, 1), Verdict::Linearizable);
    assert_eq!(with(40, 50, 2), Verdict::Linearizable);
    assert_eq!(with(40, 50, 3), Verdict::Violation);
}

#[test]
fn two_compare_and_sets_of_one_value_cannot_both_take_effect() {
    let swap = |value| Effect::CompareAndSet { expected: 1, value };
    let steps = [step(0, 10, Effect::Write(1)), step(20, 30, swap(2)), step(20, 30, swap(3))];
    assert_eq!(check(&steps, None, STEPS_MAX), Verdict::Violation);
    let refused = step(40, 50, Effect::Refused { expected: 1 });
    assert_eq!(check(&[steps[0], steps[1], refused], None, STEPS_MAX), Verdict::Linearizable);
    let wrongly = step(12, 15, Effect::Refused { expected: 1 });
    assert_eq!(check(&[steps[0], wrongly], None, STEPS_MAX), Verdict::Violation);
}

#[test]
fn an_open_write_may_take_effect_late_or_never() {
    let open = step(0, u64::MAX, Effect::Write(2));
    let first = step(1, 2, Effect::Write(1));
    let read = |at, value| step(at, at + 1, Effect::Read(value));
    let late = [open, first, read(10, 1), read(20, 2)];
    assert_eq!(check(&late, None, STEPS_MAX), Verdict::Linearizable);
    assert_eq!(check(&[open, first, read(10, 1)], None, STEPS_MAX), Verdict::Linearizable);
    let back = [open, first, read(10, 2), read(20, 1)];
    assert_eq!(check(&back, None, STEPS_MAX), Verdict::Violation);
}

#[test]
fn a_search_that_is_cut_short_says_that_it_does_not_know() {
    let steps: Vec<Step> = (0..20).map(|value| step(0, 100, Effect::Write(value))).collect();
    let all = [steps, vec![step(200, 210, Effect::Read(99))]].concat();
    assert_eq!(check(&all, None, 1_000), Verdict::Unknown);
}
