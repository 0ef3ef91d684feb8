//! Tests that need a GPU are ignored by default, and run with `ENGINE_TEST_CUDA=1`.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ENGINE_TEST_CUDA");
    println!("cargo::rustc-check-cfg=cfg(engine_test_cuda)");
    if env::var_os("ENGINE_TEST_CUDA").is_some_and(|value| value == "1") {
        println!("cargo::rustc-cfg=engine_test_cuda");
    }
}
