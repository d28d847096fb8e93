"""Starting jobs: on this machine, over several processes, and on clusters."""
