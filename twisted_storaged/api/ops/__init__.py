"""What is served for those who operate the daemon."""
