"""Buckets that S3 keeps: signed requests on connections of our own.

boto3 takes about 2 ms of CPU around a request, whatever it carries; these take a tenth. What boto3 still does is to
find the endpoint and the credentials, in `session`. The tests compare our requests with boto3's, header by header.

Small requests and all GETs are made on the reactor, where a thread would cost more than the request; parts and other
large bodies in threads, which send them from their own memory with the GIL released."""
