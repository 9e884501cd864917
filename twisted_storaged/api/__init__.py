"""What is served: the resource tree and its handlers, conditions, lists, and responses."""
