"""Buckets in S3, with requests that storaged signs and sends itself.

boto3 takes about 2 ms of CPU for a request of any size; these take a tenth of that. boto3 still finds the endpoint and
the credentials, in `session`. The tests compare the requests with boto3's, header by header.

Small requests and all GETs are made on the reactor, since a thread would cost more than the request. Parts and other
large bodies are sent by threads, from the memory they are in, with the GIL released.
"""
