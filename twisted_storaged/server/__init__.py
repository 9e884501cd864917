"""HTTP/1.1 on Twisted: connections, requests with their bodies, and the site. Knows nothing of storage."""
