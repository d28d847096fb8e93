"""Training objectives: flow matching, flow-map distillation."""
