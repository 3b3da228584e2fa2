//! Entry point of `vaina`.

fn main() {}
