"""What attention costs: compiler estimates for TPUs that are not there, times on the device that is."""
