//! A part of the monitor that panics takes nothing else along: its thread ends, and what it did is done no longer. That must
//! not go unsaid.

use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::sync::Arc;
use std::thread;

/// The thread that tells. What fails there is not told again.
const TELLER: &str = "tell-panic";

/// Has `tell` called with each panic of this process, in words, on a thread of its own: the one that panics may hold what is
/// needed to tell it, until it has unwound.
pub fn on_panic(tell: impl Fn(String) + Send + Sync + 'static) {
    let tell = Arc::new(tell);
    let printed = take_hook();
    set_hook(Box::new(move |panic| {
        printed(panic);
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        let what = in_words(name, panic);
        tracing::error!("{what}");
        if name == TELLER {
            return;
        }
        let tell = Arc::clone(&tell);
        if let Err(error) = thread::Builder::new().name(TELLER.to_owned()).spawn(move || tell(what))
        {
            tracing::error!(%error, "the jobs that run could not be told");
        }
    }));
}

fn in_words(thread: &str, panic: &PanicHookInfo<'_>) -> String {
    let panic = panic.to_string().replace('\n', " ");
    format!(
        "a part of the monitor failed, and may not do its work until the monitor is restarted: its thread {thread} {panic}"
    )
}

#[cfg(test)]
mod tests {
    use super::on_panic;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn what_failed_is_told_also_while_locks_are_held() {
        static HELD: Mutex<()> = Mutex::new(());
        let (sender, told) = channel();
        on_panic(move |what| {
            // Poisoned, and free once the thread has unwound.
            let _held = HELD.lock();
            let _ = sender.send(what);
            panic!("this one is not told");
        });
        let failing = thread::Builder::new().name("watch".to_owned()).spawn(|| {
            let _held = HELD.lock().unwrap();
            panic!("no clock goes\nas far");
        });
        failing.unwrap().join().unwrap_err();
        let what = told.recv_timeout(Duration::from_mins(1)).unwrap();
        assert!(what.contains("its thread watch panicked at"), "{what}");
        assert!(what.ends_with("no clock goes as far"), "{what}");
        assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
    }
}
