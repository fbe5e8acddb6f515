"""What each of our processes does about itself: start, signals, progress, the service manager."""
