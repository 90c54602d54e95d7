//! A job from its binding to its end.
