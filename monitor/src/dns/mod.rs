//! The job's resolver: parse, judge, ask upstream, grant, answer.
