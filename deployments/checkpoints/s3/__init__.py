"""An object store in a bucket of an S3 server, over boto3's plain calls; the only package that imports boto3."""
