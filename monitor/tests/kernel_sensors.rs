//! The BPF programs on the running kernel.
use portcullis_monitor_bpf::*;
#[test]
fn load_all() {
    let t = std::time::Instant::now();
    let l = Lifecycle::start(|e| eprintln!("{e:?}")).unwrap();
    eprintln!("lifecycle {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let g = MemoryGuard::start(&l, || portcullis_monitor::sys::pidfd::open(std::process::id()))
        .unwrap();
    eprintln!("guard {:?} {:?}", t.elapsed(), g.unseen());
}
