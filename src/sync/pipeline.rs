//! Work in two stages, side by side.
//!
//! **Problem.** A commit has stages of which one makes what the next one uses: gathering items and storing them in a tree,
//! encoding blocks and writing them. All wait for the commit, so most processors are idle meanwhile.
//!
//! **Idea.** For large amounts the first stage runs on a thread of its own for as long as it takes, a few pieces ahead. For
//! small ones, in the simulator, and where no thread can be started, each piece goes straight from one stage to the other.

/// Pieces that wait between the stages.
#[cfg(not(sim))]
const AHEAD: usize = 2;

/// Where the first stage puts its pieces. False: no more are wanted.
pub(crate) type Put<'a, T> = dyn FnMut(T) -> bool + 'a;

/// Runs `produce` and gives each piece that it puts to `consume`, in order, until one fails, which is the result. `produce` has
/// ended when this returns, whatever happens. `parallel`: it is worth a thread (some 50 µs).
pub(crate) fn pipeline<T: Send, E>(
    parallel: bool,
    produce: impl FnOnce(&mut Put<'_, T>) + Send,
    mut consume: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    #[cfg(not(sim))]
    if parallel {
        return side_by_side(produce, consume);
    }
    let _ = parallel;
    in_turn(produce, &mut consume)
}

fn in_turn<T, E>(produce: impl FnOnce(&mut Put<'_, T>), consume: &mut impl FnMut(T) -> Result<(), E>) -> Result<(), E> {
    let mut result = Ok(());
    produce(&mut |piece| {
        // A stage that does not stop when it is told to must not turn an error into success.
        if result.is_ok() {
            result = consume(piece);
        }
        result.is_ok()
    });
    result
}

#[cfg(not(sim))]
fn side_by_side<T: Send, E>(
    produce: impl FnOnce(&mut Put<'_, T>) + Send,
    mut consume: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    use super::{Mutex, thread};

    // Taken by whoever runs it: the thread, or, if there is none, the caller.
    let produce = Mutex::new(Some(produce));
    let (send, receive) = crossbeam::channel::bounded(AHEAD);
    thread::scope(|scope| {
        let stage = || {
            let send = send;
            let taken = produce.lock().take();
            if let Some(produce) = taken {
                produce(&mut |piece| send.send(piece).is_ok());
            }
        };
        if thread::Builder::new().name("scoutfs-stage".into()).spawn_scoped(scope, stage).is_err() {
            // The sender went with the closure.
            let taken = produce.lock().take();
            return taken.map_or(Ok(()), |produce| in_turn(produce, &mut consume));
        }
        // Ends when the thread does, by a panic too, which the scope passes on. Leaving earlier drops the receiver and so ends
        // the thread.
        receive.into_iter().try_for_each(&mut consume)
    })
}

#[cfg(all(test, not(sim)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn pieces_arrive_in_order_until_one_fails() {
        for parallel in [false, true] {
            for fails_at in [0, 1, 5, 99, 1000] {
                let (mut seen, mut put) = (Vec::new(), 0);
                let result = pipeline(
                    parallel,
                    |out| {
                        for i in 0..100 {
                            put += 1;
                            if !out(i) {
                                return;
                            }
                        }
                    },
                    |i| {
                        seen.push(i);
                        if i == fails_at { Err(i) } else { Ok(()) }
                    },
                );
                let expected = fails_at.min(99);
                assert_eq!(seen, (0..=expected).collect::<Vec<_>>());
                assert_eq!(result, if fails_at < 100 { Err(fails_at) } else { Ok(()) });
                assert!(put <= expected + 2 + AHEAD, "{put} pieces made, failed at {fails_at}");
            }
        }
    }

    /// The error stands even if the first stage goes on.
    #[test]
    fn a_stage_that_does_not_listen_changes_nothing() {
        for parallel in [false, true] {
            let mut seen = 0;
            let result = pipeline(
                parallel,
                |out| {
                    (0..100).for_each(|i| {
                        out(i);
                    })
                },
                |i| {
                    seen += 1;
                    if i == 7 { Err("seven") } else { Ok(()) }
                },
            );
            assert_eq!((result, seen), (Err("seven"), 8));
        }
    }

    #[test]
    fn a_panic_of_either_stage_reaches_the_caller() {
        for parallel in [false, true] {
            let first = || pipeline::<u32, ()>(parallel, |_| panic!("first"), |_| Ok(()));
            assert!(catch_unwind(AssertUnwindSafe(first)).is_err());
            let endless = |out: &mut Put<'_, u32>| while out(1) {};
            let second = || pipeline::<u32, ()>(parallel, endless, |_| panic!("second"));
            assert!(catch_unwind(AssertUnwindSafe(second)).is_err());
        }
    }
}
