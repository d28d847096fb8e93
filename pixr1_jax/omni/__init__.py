"""Omni: text, image, video, audio and actions as tokens of one transformer."""
