"""What knows Twisted and the kernel, and nothing of objects: reactor, threads, buffers, sockets, files."""
