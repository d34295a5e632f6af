"""Image and video files.

Owns: encoding and decoding, thumbnails, the marks in every file that say a model made it.
Speaks: images, frames and bytes. No jobs, no storage keys, no storage.
"""
