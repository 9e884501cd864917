"""What is served: the resource tree, the handlers of the verb paths, their requests and responses."""
