"""Reference images: from the reference in a job to an RGB image.

Owns which references may be read, data URIs, and the decoding of untrusted image files.
Handles references, bytes and images; knows no jobs and no HTTP headers.
"""
