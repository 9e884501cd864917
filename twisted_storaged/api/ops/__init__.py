"""What is served for those who operate the daemon: metrics, health, status and a page."""
