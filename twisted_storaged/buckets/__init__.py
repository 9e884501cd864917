"""Storage and nothing else: what a bucket is, and the two kinds there are. Nothing in here knows HTTP."""
