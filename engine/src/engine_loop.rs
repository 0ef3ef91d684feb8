//! engine_loop
