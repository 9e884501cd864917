"""HTTP and nothing else: what is on the wire, and which call of the house each request is. No boto3 in here."""
