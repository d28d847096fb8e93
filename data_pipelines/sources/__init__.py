"""Where clips come from: simulators, games and video files."""
