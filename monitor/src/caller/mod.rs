//! Who calls: peer credentials, pidfd, and the ancestors up to `Runner.Worker`.
