"""The engine: Megatron-Core called directly. Import its modules inside a `runtime(...)` block."""
