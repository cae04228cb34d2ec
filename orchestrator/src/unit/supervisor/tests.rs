//! What the engine promises, by example and for any sequence of inputs.

use proptest::prelude::*;

use super::*;

const S: fn(u64) -> Duration = Duration::from_secs;

fn restart() -> Restart {
    Restart {
        policy: RestartPolicy::OnFailure,
        delay: S(1),
        factor: 2.0,
        max_delay: S(60),
        jitter_percent: 0,
        burst: 3,
        interval: S(600),
    }
}

fn rules(min: u32, max: u32) -> Rules {
    Rules {
        pool: Pool {
            min,
            max,
            idle: S(30),
        },
        restart: restart(),
        schedule: None,
        triggered: min == 0,
        leased: true,
    }
}

fn launch(member: u32) -> Action {
    Action::Launch { member }
}

fn started(rules: Rules) -> Supervisor {
    let mut unit = Supervisor::new(rules);
    for action in unit.start(S(0)) {
        let Action::Launch { member } = action else {
            panic!("a start launches")
        };
        assert_eq!(unit.running(member, S(0)), None);
    }
    unit
}

#[test]
fn a_failed_member_comes_back_after_a_delay_that_doubles() {
    let mut unit = started(rules(1, 1));
    let mut now = S(10);
    for delay in [1, 2, 4] {
        assert_eq!(unit.ended(1, &End::Code(1), now, 0.5), []);
        assert_eq!(unit.state(), UnitState::Restarting);
        assert_eq!(unit.next_deadline(), Some(now + S(delay)));
        assert_eq!(unit.tick(now + S(delay) - Duration::from_millis(1)), []);
        now += S(delay);
        assert_eq!(unit.tick(now), [launch(1)]);
        assert_eq!(unit.running(1, now), None);
        assert_eq!(unit.state(), UnitState::Running);
    }
}

#[test]
fn the_start_limit_ends_it_and_a_start_by_hand_begins_anew() {
    let mut unit = started(rules(1, 1));
    let mut now = S(0);
    for _ in 0..3 {
        unit.ended(1, &End::Code(2), now, 0.5);
        now = unit.next_deadline().unwrap();
        assert_eq!(unit.tick(now), [launch(1)]);
        unit.running(1, now);
    }
    assert_eq!(unit.ended(1, &End::Code(2), now, 0.5), []);
    assert_eq!(unit.state(), UnitState::Failed);
    assert_eq!(unit.next_deadline(), None);
    let Some(Failure::StartLimit { burst: 3, last, .. }) = unit.failure() else {
        panic!("{:?}", unit.failure())
    };
    assert_eq!(*last, End::Code(2));
    assert_eq!(unit.demand(), Err(NoMember::Failed));
    assert_eq!(unit.start(now), [launch(1)]);
    unit.running(1, now);
    unit.ended(1, &End::Code(2), now, 0.5);
    assert_eq!(unit.next_deadline(), Some(now + S(1)));
}

#[test]
fn a_long_run_forgets_earlier_failures() {
    let mut unit = started(rules(1, 1));
    unit.ended(1, &End::Code(1), S(1), 0.5);
    unit.tick(S(2));
    unit.running(1, S(2));
    unit.ended(1, &End::Code(1), S(2) + S(600), 0.5);
    assert_eq!(unit.next_deadline(), Some(S(603)));
}

#[test]
fn each_policy_restarts_what_it_says() {
    use RestartPolicy::*;
    let failed = End::LaunchFailed("no such program".into());
    for (policy, clean, code, signal, limit, launch) in [
        (Never, false, false, false, false, false),
        (OnFailure, false, true, true, true, true),
        (OnAbnormal, false, false, true, true, false),
        (Always, true, true, true, true, true),
    ] {
        let restart = Restart {
            policy,
            ..restart()
        };
        let covered = [
            &End::Clean,
            &End::Code(1),
            &End::Signal(9),
            &End::Limit,
            &failed,
        ]
        .map(|end| restart.covers(end));
        assert_eq!(covered, [clean, code, signal, limit, launch], "{policy:?}");
        assert!(!restart.covers(&End::Stopped), "{policy:?}");
    }
}

#[test]
fn a_pool_grows_on_demand_and_shrinks_to_its_least() {
    let mut unit = started(rules(1, 3));
    for member in [2, 3] {
        assert_eq!(unit.demand(), Ok((member, launch(member))));
        unit.running(member, S(0));
    }
    assert_eq!(unit.demand(), Err(NoMember::Full));
    unit.busy(2);
    assert_eq!(
        unit.tick(S(30)),
        [Action::Stop { member: 3 }, Action::Stop { member: 1 }]
    );
    unit.ended(3, &End::Stopped, S(30), 0.5);
    unit.ended(1, &End::Stopped, S(30), 0.5);
    assert_eq!(unit.running_members(), [2]);
    unit.idle(2, S(40));
    assert_eq!(unit.tick(S(500)), [], "the least stays");
}

#[test]
fn a_stop_during_a_launch_stops_it_when_it_is_through() {
    let mut unit = Supervisor::new(rules(1, 1));
    assert_eq!(unit.start(S(0)), [launch(1)]);
    assert_eq!(unit.stop(), []);
    assert_eq!(unit.state(), UnitState::Stopping);
    assert_eq!(unit.running(1, S(1)), Some(Action::Stop { member: 1 }));
    assert_eq!(unit.ended(1, &End::Stopped, S(2), 0.5), []);
    assert_eq!(unit.state(), UnitState::Inactive);
}

#[test]
fn a_schedule_starts_it_again_unless_it_runs() {
    let mut unit = Supervisor::new(Rules {
        schedule: Some(S(60)),
        ..rules(0, 1)
    });
    assert_eq!(unit.start(S(0)), []);
    assert_eq!(unit.state(), UnitState::Waiting);
    assert_eq!(unit.next_deadline(), Some(S(60)));
    assert_eq!(unit.tick(S(60)), [launch(1)]);
    unit.running(1, S(60));
    unit.busy(1);
    assert_eq!(unit.tick(S(120)), [], "it still runs");
    unit.ended(1, &End::Clean, S(130), 0.5);
    assert_eq!(unit.tick(S(180)), [launch(1)]);
}

#[test]
fn an_adopted_member_is_restarted_like_any_other() {
    let mut unit = Supervisor::new(rules(1, 1));
    unit.adopt(1, S(5));
    assert_eq!(unit.state(), UnitState::Running);
    unit.ended(1, &End::Signal(9), S(6), 0.5);
    assert_eq!(unit.tick(S(7)), [launch(1)]);
}

#[test]
fn a_smaller_pool_stops_the_highest_members() {
    let mut unit = started(rules(3, 3));
    assert_eq!(
        unit.configure(rules(1, 2), S(1)),
        [Action::Stop { member: 3 }]
    );
}

proptest! {
    #[test]
    fn delays_stay_within_their_bounds(
        failures in 0u32..1000,
        random in 0.0f64..1.0,
        jitter in 0u8..=100,
        factor in 1.0f64..10.0,
    ) {
        let restart = Restart { jitter_percent: jitter, factor, ..restart() };
        let delay = restart.delay_after(failures, random);
        prop_assert!(delay <= restart.max_delay);
        let least = restart.delay.as_secs_f64() * (1.0 - f64::from(jitter) / 100.0);
        prop_assert!(delay.as_secs_f64() >= least - 1e-6);
    }

    /// Whatever comes in, in whatever order: the guarantees of the module's description.
    #[test]
    fn no_sequence_of_inputs_breaks_the_guarantees(
        min in 0u32..3, more in 0u32..4,
        steps in prop::collection::vec((0u8..8, 1u32..6, 0u64..400, 0.0f64..1.0), 1..200),
    ) {
        let max = (min + more).max(1);
        let rules = rules(min, max);
        let mut unit = Supervisor::new(rules.clone());
        let mut now = S(0);
        // What the world really has: launches under way, and agents.
        let (mut coming, mut there) = (Vec::<u32>::new(), Vec::<u32>::new());
        let mut on = false;
        let (mut restarts, mut counted) = (Vec::<Duration>::new(), 0);
        for (what, member, wait, random) in steps {
            now += S(wait);
            let mut actions = Vec::new();
            match what {
                0 => { on = true; restarts.clear(); actions = unit.start(now); }
                1 => { on = false; actions = unit.stop(); }
                2 => actions.extend(unit.demand().ok().map(|(_, action)| action)),
                3 if coming.contains(&member) => {
                    coming.retain(|m| *m != member);
                    there.push(member);
                    actions.extend(unit.running(member, now));
                }
                4 if coming.contains(&member) => {
                    coming.retain(|m| *m != member);
                    actions = unit.ended(member, &End::LaunchFailed("x".into()), now, random);
                }
                5 if there.contains(&member) => {
                    there.retain(|m| *m != member);
                    actions = unit.ended(member, &End::Code(1), now, random);
                }
                6 => unit.busy(member),
                _ => actions = unit.tick(now),
            }
            for action in actions {
                match action {
                    Action::Launch { member } => {
                        prop_assert!(on, "a launch after stop");
                        prop_assert!(!coming.contains(&member) && !there.contains(&member), "two launches of {member}");
                        coming.push(member);
                    }
                    Action::Stop { member } => prop_assert!(there.contains(&member), "a stop of what is not there"),
                }
            }
            prop_assert!(coming.len() + there.len() <= max as usize, "more than pool.max");
            if let Some(Failure::StartLimit { .. }) = unit.failure() {
                prop_assert_eq!(unit.demand(), Err(NoMember::Failed));
            }
            if unit.total_restarts() > counted {
                counted = unit.total_restarts();
                restarts.push(now);
            }
            let recent = restarts.iter().filter(|at| now - **at < rules.restart.interval);
            prop_assert!(recent.count() <= rules.restart.burst as usize, "more restarts than the burst");
        }
    }
}
