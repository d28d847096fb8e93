"""The streaming engine: the step function, its export, and the runner of the artifact."""
