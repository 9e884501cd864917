"""The data plane of S3: a thin layer of signed requests, for S3Bucket alone.

boto3 takes about 2 ms of CPU around a request, whatever it carries; these take a tenth. Here are the requests that
carry objects: PutObject, UploadPart, GetObject, HeadObject, DeleteObject, ListObjectsV2. All that is rare stays with
boto3, as do the configuration and the credentials; the tests compare the two, header by header.

Small requests and all GETs are made on the reactor, where a thread would cost more than the request; parts and
other large bodies in threads, which send them from their own memory with the GIL released.
"""
