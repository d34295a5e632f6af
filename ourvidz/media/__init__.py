"""Image and video files.

Owns: encoding and decoding, thumbnails, the AI-generated provenance metadata in every file.
Handles: images, frames and bytes. No jobs, no storage keys, no storage.
"""
