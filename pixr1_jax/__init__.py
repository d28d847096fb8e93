"""Real-time audio-visual world models in JAX: train, distil, export, serve."""
