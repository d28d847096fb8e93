"""Measuring a stream against recordings it has not seen: fidelity, control and sound, with baselines beside them."""
