//! Pieces of work side by side.

use std::sync::Mutex;
use std::{iter, panic, thread};

/// As many as there are processors.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Does the same with each item, with at most so many of them at once. What came of them,
/// in their order.
///
/// # Panics
/// As `work` does.
pub(crate) fn each<T: Sync, R: Send>(
    places: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let waiting = Mutex::new(items.iter().enumerate());
    let next = || waiting.lock().ok()?.next();
    let place = || iter::from_fn(next).map(|(at, item)| (at, work(item))).collect::<Vec<_>>();
    let mut done: Vec<_> = thread::scope(|scope| {
        let places: Vec<_> = (0..places.min(items.len())).map(|_| scope.spawn(place)).collect();
        let ends = places.into_iter().map(|place| place.join());
        ends.flat_map(|end| end.unwrap_or_else(|why| panic::resume_unwind(why))).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::each;

    #[test]
    fn so_many_run_at_once_and_no_more() {
        // None goes on before both are there.
        let (pair, running) = (Barrier::new(2), AtomicUsize::new(0));
        let seen = each(2, &[1, 2, 3, 4], |item| {
            assert!(running.fetch_add(1, Ordering::SeqCst) < 2);
            pair.wait();
            running.fetch_sub(1, Ordering::SeqCst);
            item * 10
        });
        assert_eq!(seen, [10, 20, 30, 40]);
    }

    #[test]
    fn more_places_than_items_stay_empty() {
        assert_eq!(each(8, &["a"], |item| item.len()), [1]);
        assert!(each(8, &[], |item: &u8| *item).is_empty());
    }

    #[test]
    #[should_panic(expected = "of the second")]
    fn a_panic_is_the_callers() {
        each(2, &[1, 2], |item| assert!(*item != 2, "of the second"));
    }
}
