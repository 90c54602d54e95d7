//! What is changed in a Worker once, when it is bound, so that it is harder to attack: other processes of its user can't
//! read its memory any more, and, where the policy disables sudo, nothing below it gains rights by a setuid program.
